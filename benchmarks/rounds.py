"""Interleaved rounds: A, B, C, A, B, C, … so that a slow minute of the machine hits all alike."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from benchmarks.errors import Refused
from benchmarks.percentiles import median
from benchmarks.report import Progress

Result = TypeVar("Result")

ROUNDS: Final = 5
REPEATS_MAX: Final = 5


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much a benchmark may spend."""

    quick: bool = False
    """A smoke run: shows that everything works, its figures mean nothing."""
    rounds: int | None = None
    """Instead of the benchmark's own number."""

    def times(self, usual: int = ROUNDS) -> int:
        """How often to measure what is measured `usual` times otherwise."""
        return 1 if self.quick else self.rounds or usual


def interleave(
    arms: Mapping[str, Callable[[], Result]], rounds: int, progress: Progress
) -> dict[str, list[Result]]:
    """Run every arm once per round, in the order given; every arm's results, in order of rounds.

    A run that met a limit is run again, REPEATS_MAX times in all; the progress says so.
    """
    repeats = 0
    results: dict[str, list[Result]] = {name: [] for name in arms}
    for number in range(1, rounds + 1):
        for name, run in arms.items():
            progress(f"round {number} of {rounds}: {name}")
            while True:
                gc.collect()
                try:
                    results[name].append(run())
                    break
                except Refused as exc:
                    repeats += 1
                    if repeats > REPEATS_MAX:
                        raise
                    progress(f"run again, as the machine stood still: {exc}")
    return results


def median_ratio(values: Sequence[float], yardstick: Sequence[float]) -> float:
    """Ratio of the medians."""
    base = median(yardstick)
    return median(values) / base if base else 0.0
