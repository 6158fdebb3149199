"""Prometheus metrics, read from plain counters when asked: the hot path only adds integers.

Labels are bounded: cells of the table, classes of statuses, refusals and losses we name ourselves.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.errors import REFUSALS
from router.exchange import Loss

if TYPE_CHECKING:
    from router.app import Router


class RouterMetrics(Collector):
    def __init__(self, router: "Router") -> None:
        self._router = router
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._per_cell_counters()
        yield from self._per_cell_gauges()
        yield from self._clients()
        yield from self._hold()
        yield from self._routing()

    def _per_cell_counters(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "cloister_router_answers", "Complete answers of cells", labels=("cell", "status")
        )
        losses = CounterMetricFamily(
            "cloister_router_losses",
            "Requests that lost their answer, by cause",
            labels=("cell", "cause"),
        )
        resends = CounterMetricFamily(
            "cloister_router_resends", "Requests tried a second time", labels=("cell",)
        )
        shed = CounterMetricFamily(
            "cloister_router_shed", "Requests for which no connection came free", labels=("cell",)
        )
        opened = CounterMetricFamily(
            "cloister_router_breaker_opened", "How often the breaker opened", labels=("cell",)
        )
        refused = CounterMetricFamily(
            "cloister_router_breaker_refused", "Refused by an open breaker", labels=("cell",)
        )
        for pool in self._router.routes.pools:
            for digit in range(1, 6):
                answers.add_metric((pool.cell, f"{digit}xx"), pool.answers[digit])
            for loss in Loss:
                losses.add_metric((pool.cell, loss.value), pool.losses[loss])
            resends.add_metric((pool.cell,), pool.resends)
            shed.add_metric((pool.cell,), pool.shed)
            opened.add_metric((pool.cell,), pool.breaker.opened)
            refused.add_metric((pool.cell,), pool.refused)
        yield from (answers, losses, resends, shed, opened, refused)

    def _per_cell_gauges(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "cloister_router_in_flight", "Requests a cell has now", labels=("cell",)
        )
        waiting = GaugeMetricFamily(
            "cloister_router_waiting", "Requests waiting for a connection", labels=("cell",)
        )
        connections = GaugeMetricFamily(
            "cloister_router_cell_connections", "Open connections to a cell", labels=("cell",)
        )
        breakers = GaugeMetricFamily(
            "cloister_router_breaker_open", "1 while requests are refused at once", labels=("cell",)
        )
        for pool in self._router.routes.pools:
            breakers.add_metric((pool.cell,), int(not pool.breaker.is_closed))
            in_flight.add_metric((pool.cell,), pool.in_flight)
            waiting.add_metric((pool.cell,), pool.waiting)
            connections.add_metric((pool.cell,), pool.open_connections)
        yield from (in_flight, waiting, connections, breakers)

    def _clients(self) -> Iterator[Metric]:
        edge = self._router.edge
        yield CounterMetricFamily(
            "cloister_router_requests", "Requests whose head was read", edge.requests
        )
        refusals = CounterMetricFamily(
            "cloister_router_refusals", "Answers by the router itself", labels=("status", "code")
        )
        for refusal in REFUSALS:
            refusals.add_metric((str(refusal.status), refusal.code), edge.refusals[refusal])
        yield refusals
        yield GaugeMetricFamily(
            "cloister_router_client_connections", "Open connections", len(edge.connections)
        )
        yield GaugeMetricFamily(
            "cloister_router_buffered_bytes", "Request bodies held", edge.buffered_bytes
        )

    def _hold(self) -> Iterator[Metric]:
        hold = self._router.forwarder.hold
        counts = hold.counts
        held = CounterMetricFamily(
            "cloister_router_held", "Requests held while their tenant moved", counts.held
        )
        ended = CounterMetricFamily(
            "cloister_router_hold_ended", "What became of them", labels=("outcome",)
        )
        for outcome in ("served", "full", "late"):
            ended.add_metric((outcome,), getattr(counts, outcome))
        yield from (held, ended)
        yield CounterMetricFamily(
            "cloister_router_held_seconds", "Wait of those served", counts.wait_s
        )
        yield CounterMetricFamily(
            "cloister_router_followed", "Requests sent on at a higher epoch", counts.followed
        )
        yield GaugeMetricFamily("cloister_router_holding", "Requests held now", hold.waiting)
        yield GaugeMetricFamily(
            "cloister_router_holding_bytes", "Bodies of requests held now", hold.waiting_bytes
        )
        yield GaugeMetricFamily(
            "cloister_router_holding_tenants", "Tenants of which requests are held", hold.tenants
        )

    def _routing(self) -> Iterator[Metric]:
        routes, follower = self._router.routes, self._router.follower
        if routes.version is not None:
            yield GaugeMetricFamily(
                "cloister_router_routing_version", "Of the table", routes.version
            )
        yield GaugeMetricFamily(
            "cloister_router_routing_tenants", "Placements in the table", routes.tenants
        )
        yield GaugeMetricFamily(
            "cloister_router_routing_fresh", "1 while confirmed lately", int(routes.is_fresh)
        )
        age_s = follower.age_s
        if age_s is not None:
            yield GaugeMetricFamily(
                "cloister_router_routing_age_seconds", "Since last confirmed", age_s
            )
        polls = CounterMetricFamily(
            "cloister_router_polls", "Polls of the control plane", labels=("outcome",)
        )
        for outcome, count in follower.polls.items():
            polls.add_metric((outcome,), count)
        yield polls
