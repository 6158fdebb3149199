"""Spans: what a collector is told of each request, and what the cell is told of its parent.

Method: a real collector that takes OTLP over HTTP; the router's own exporter, as shipped.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from conftest import Platform
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from router_cells import CellSide, serving
from router_clients import request
from router_running import free_port, wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from test_hold import PATIENCE, Move, send_writes

from router.errors import SettingsError

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"traceparent: 00-{TRACE_ID}-{PARENT_ID}-01\r\ntracestate: a=1\r\ntracestate: b=2\r\n"


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.app = Starlette(routes=[Route("/v1/traces", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        for of_resource in ExportTraceServiceRequest.FromString(
            await request.body()
        ).resource_spans:
            named = attributes_of(of_resource.resource)
            self.services.add(str(named["service.name"]))
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return Response(status_code=200, media_type="application/x-protobuf")

    def only(self) -> Span:
        wait_until(lambda: self.spans, "a span")
        (span,) = self.spans
        return span


def attributes_of(owner: object) -> dict[str, str | int]:
    return {each.key: value_of(each.value) for each in owner.attributes}  # type: ignore[attr-defined]


def value_of(value: AnyValue) -> str | int:
    return value.int_value if value.HasField("int_value") else value.string_value


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with ExitStack() as parts:
        collecting = Collector()
        port = parts.enter_context(serving(collecting.app)).port
        collecting.url = f"http://127.0.0.1:{port}/v1/traces"
        yield collecting


def test_a_request_is_a_child_of_its_client_and_the_parent_of_its_cell(
    platform: Platform, collector: Collector
) -> None:
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    client = platform.client(platform.router(otlp_url=collector.url))
    answer = client.ask(request("POST", "/api/x?secret=1", headers=SAMPLED, body=b"{}"))
    span = collector.only()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert (span.name, span.kind) == ("POST", Span.SPAN_KIND_SERVER)
    assert span.start_time_unix_nano < span.end_time_unix_nano
    assert attributes_of(span) == {
        "http.request.method": "POST",
        "url.path": "/api/x",
        "http.response.status_code": 201,
        "cloister.request_id": answer.headers["x-request-id"],
        "cloister.tenant": "tenant-a",
        "cloister.cell": "cell-a",
        "cloister.epoch": 1,
    }
    assert collector.services == {"cloister-router"}
    (seen,) = cell.seen
    assert seen.header("traceparent") == f"00-{TRACE_ID}-{span.span_id.hex()}-01"
    assert [value for name, value in seen.headers if name == "tracestate"] == ["a=1", "b=2"]


def test_repeated_heads_have_spans_of_their_own(platform: Platform, collector: Collector) -> None:
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    client = platform.client(platform.router(otlp_url=collector.url))
    for _ in range(3):
        assert client.ask(request(headers=SAMPLED)).status == 200
    wait_until(lambda: len(collector.spans) == 3, "three spans")
    told = [seen.header("traceparent") for seen in cell.seen]
    assert told == [f"00-{TRACE_ID}-{span.span_id.hex()}-01" for span in collector.spans]
    assert len(set(told)) == 3


def test_a_client_that_traces_nothing_begins_a_trace_here(
    platform: Platform, collector: Collector
) -> None:
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    client = platform.client(platform.router(otlp_url=collector.url))
    # Two parents are none.
    assert client.ask(request(headers=SAMPLED + SAMPLED)).status == 200
    span = collector.only()
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE_ID
    (seen,) = cell.seen
    assert seen.header("tracestate") is None
    told = seen.header("traceparent")
    assert told is not None
    assert told.startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-")


def test_what_its_client_does_not_record_is_not_recorded_here(
    platform: Platform, collector: Collector
) -> None:
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(otlp_url=collector.url)
    unsampled = SAMPLED.replace(f"{PARENT_ID}-01", f"{PARENT_ID}-00")
    assert platform.client(router).ask(request(headers=unsampled)).status == 200
    told = cell.seen[0].header("traceparent")
    assert told is not None
    assert told.startswith(f"00-{TRACE_ID}-")
    assert told.endswith("-00")
    # One that is recorded comes alone, though it is later.
    assert platform.client(router).ask(request(headers=SAMPLED)).status == 200
    assert collector.only().trace_id.hex() == TRACE_ID


def swallow_all(side: CellSide) -> None:
    while side.request() is not None:
        pass


def test_a_request_that_met_its_deadline_says_so(platform: Platform, collector: Collector) -> None:
    platform.route_all_to(platform.scripted_cell(swallow_all).port)
    client = platform.client(platform.router(otlp_url=collector.url, request_ms_max=300))
    assert client.ask(request()).status == 504
    span = collector.only()
    assert attributes_of(span)["http.response.status_code"] == 504
    assert "did not answer in time" in span.status.message


def test_tracing_switched_off_leaves_requests_as_they_are(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    cell, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(otlp_url="http://127.0.0.1:1/v1/traces")
    client = platform.client(router)
    assert client.ask(request()).status == 200
    assert client.ask(request(headers=SAMPLED)).status == 200
    told = [seen.header("traceparent") for seen in cell.seen]
    assert told == [None, f"00-{TRACE_ID}-{PARENT_ID}-01"]


def test_a_setting_that_opentelemetry_refuses_is_named(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match="OpenTelemetry"):
        platform.router(ready=False, otlp_url="http://127.0.0.1:1/v1/traces")


def test_refusals_have_spans_too(platform: Platform, collector: Collector) -> None:
    platform.publish(1, {"tenant-a": ("cell-a", 1)}, {"cell-a": free_port()})
    client = platform.client(platform.router(otlp_url=collector.url))
    assert client.ask(request(tenant="nobody")).status == 401
    assert client.ask(request()).status == 503
    wait_until(lambda: len(collector.spans) == 2, "both spans")
    unknown, unreachable = collector.spans
    assert attributes_of(unknown)["http.response.status_code"] == 401
    assert "cloister.cell" not in attributes_of(unknown)
    assert unknown.status.code == Status.STATUS_CODE_UNSET
    assert attributes_of(unreachable)["http.response.status_code"] == 503
    assert attributes_of(unreachable)["cloister.resends"] == 1
    assert unreachable.status.code == Status.STATUS_CODE_ERROR
    assert "cannot be reached" in unreachable.status.message


def test_a_held_request_says_so(platform: Platform, collector: Collector) -> None:
    move = Move(platform)
    router = platform.router(otlp_url=collector.url, **PATIENCE)
    (client,) = send_writes(platform, router, 1)
    move.switch()
    assert client.answer().status == 200
    told = attributes_of(collector.only())
    assert (told["cloister.cell"], told["cloister.epoch"]) == ("cell-b", 2)
    assert int(told["cloister.held_ms"]) >= 0


def test_a_router_that_ends_sends_what_is_left(
    platform: Platform, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(otlp_url=collector.url)
    assert platform.client(router).ask(request()).status == 200
    assert collector.spans == []
    router.stop()
    assert collector.only().name == "GET"


def test_a_dead_collector_costs_no_request(platform: Platform) -> None:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    router = platform.router(otlp_url=f"http://127.0.0.1:{free_port()}/v1/traces")
    client = platform.client(router)
    assert all(client.ask(request()).status == 200 for _ in range(50))


def test_without_the_extra_the_variable_is_refused(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "router.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"OTLP_URL needs the extra.*opentelemetry"):
        platform.router(ready=False, otlp_url="http://127.0.0.1:4318/v1/traces")
