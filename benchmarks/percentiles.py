"""Latency percentiles and medians of repeated runs."""

import statistics
from collections.abc import Iterable, Sequence

import msgspec


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds; all zero where nothing was measured."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


def latency(seconds: Iterable[float]) -> Latency:
    """Nearest-rank percentiles: every figure is a latency that really occurred."""
    ordered = sorted(seconds)
    if not ordered:
        return Latency(0.0, 0.0, 0.0, 0.0)
    return Latency(
        milliseconds(ordered, 0.50),
        milliseconds(ordered, 0.90),
        milliseconds(ordered, 0.99),
        milliseconds(ordered, 1.0),
    )


def milliseconds(ordered: Sequence[float], share: float) -> float:
    rank = max(0, -(-int(share * 10_000) * len(ordered) // 10_000) - 1)
    return round(ordered[rank] * 1e3, 3)


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Distance between the extremes relative to the median: how noisy the rounds were."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
