"""Metrics of the cell for Prometheus: requests by route and status, and the sequencer's figures.

Counting happens on the hot path and is two dictionary updates; the text format is made when asked.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cell.durable_queue import BUCKETS_S as WAIT_BUCKETS_S
from cell.durable_queue import DurableQueue
from cell.sequencer import Sequencer

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMetrics:
    """Requests answered, by method, route and status, with how long they took."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], list[float]] = {}
        """By method and route: one count a bucket, one for what is above all, and their sum."""

    def observe(self, method: str, route: str, status: int, took_s: float) -> None:
        key = (method, route, status)
        self._answers[key] = self._answers.get(key, 0) + 1
        duration = self._durations.get((method, route))
        if duration is None:
            duration = self._durations[(method, route)] = [0.0] * (len(BUCKETS_S) + 2)
        duration[bisect_left(BUCKETS_S, took_s)] += 1
        duration[-1] += took_s

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "cloister_cell_requests", "Requests answered", labels=["method", "route", "status"]
        )
        for (method, route, status), count in self._answers.items():
            answers.add_metric([method, route, str(status)], count)
        yield answers
        durations = HistogramMetricFamily(
            "cloister_cell_request_seconds", "Time to the answer", labels=["method", "route"]
        )
        for (method, route), (*counts, total_s) in self._durations.items():
            buckets = list(_cumulated(BUCKETS_S, counts))
            durations.add_metric([method, route], buckets, sum_value=total_s)
        yield durations


def _cumulated(bounds: Iterable[float], counts: Iterable[float]) -> Iterator[tuple[str, float]]:
    below = 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        below += count
        yield bound, below


class CellMetrics(Collector):
    """Everything the cell shows."""

    def __init__(self, requests: RequestMetrics, sequencer: Sequencer, queue: DurableQueue) -> None:
        self._requests = requests
        self._sequencer = sequencer
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        yield from self._requests.collect()
        status = self._sequencer.status
        counters = {
            "batches": ("Batches committed", status.batches),
            "commands_applied": ("Commands applied", status.commands_applied),
            "commands_refused": ("Commands refused", status.commands_refused),
        }
        for name, (text, count) in counters.items():
            yield CounterMetricFamily(f"cloister_cell_{name}", text, value=count)
        gauges = {
            "queue_depth": ("Commands waiting", self._sequencer.queue_depth),
            "cached_accounts": ("Accounts in memory", len(self._sequencer.memory)),
            "writer_epoch": ("Epoch of the writer", status.writer_epoch),
            "connected": ("1 while the sequencer is connected", int(status.connected)),
            "batch_ms_p99": ("Write and commit of a batch, 99th percentile", status.batch_ms_p99),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"cloister_cell_{name}", text, value=value)
        yield from self._collect_queue()

    def _collect_queue(self) -> Iterator[Metric]:
        status = self._queue.status
        applied = CounterMetricFamily(
            "cloister_cell_async_rows", "Rows of the durable queue settled", labels=["status"]
        )
        applied.add_metric(["successful"], status.successful)
        applied.add_metric(["failed"], status.failed)
        yield applied
        yield GaugeMetricFamily(
            "cloister_cell_async_queue_depth", "Rows accepted, not settled", value=status.depth
        )
        yield GaugeMetricFamily(
            "cloister_cell_async_queue_oldest_seconds",
            "Age of the row that waits for longest",
            value=status.oldest_s,
        )
        waits = HistogramMetricFamily(
            "cloister_cell_async_wait_seconds", "From the acceptance of a row to its application"
        )
        buckets = list(_cumulated(WAIT_BUCKETS_S, status.waits))
        waits.add_metric([], buckets, sum_value=status.waited_s)
        yield waits

    def render(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)
