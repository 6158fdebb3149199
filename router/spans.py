"""Spans for whoever traces requests, sent by OTLP over HTTP; needs the extra `opentelemetry`.

A request's span begins when its turn comes and ends with its answer. It is a child of the span that
the client named in `traceparent`, and the parent of what the cell's side records: the cell gets a
`traceparent` that names it. `OTEL_TRACES_SAMPLER` says how many are recorded.
"""

import os
import re
import threading
from time import monotonic
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SERVICE_NAME
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.exchange import Exchange

SERVICE: Final = "cloister-router"
EXPORT_S_MAX: Final = 5
"""For one batch of spans; then they are lost, and nothing waits for them."""
LAST_EXPORT_S_MAX: Final = 2.0
"""For what is left when the router ends."""

_TRACEPARENT: Final = re.compile(rb"\r\ntraceparent: ([^\r]*)")
_TRACESTATE: Final = re.compile(rb"\r\ntracestate: ([^\r]*)")
_CONTEXT: Final = re.compile(rb"\r\ntrace(?:parent|state): [^\r]*")


class Spans:
    def __init__(self, url: str) -> None:
        resource = Resource.create({SERVICE_NAME: os.environ.get(OTEL_SERVICE_NAME, SERVICE)})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_S_MAX)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("cloister.router")
        self._contexts = TraceContextTextMapPropagator()

    def begin(self, exchange: Exchange) -> None:
        """Open the request's span, and name it to the cell in the client's place."""
        fields = exchange.fields
        named = _TRACEPARENT.findall(fields)
        carrier: dict[str, str] = {}
        if len(named) == 1:
            states = b",".join(_TRACESTATE.findall(fields))
            carrier["traceparent"] = named[0].decode("latin-1")
            carrier["tracestate"] = states.decode("latin-1")
        context = self._contexts.extract(carrier)
        span = self._tracer.start_span(
            exchange.method.decode(), context=context, kind=SpanKind.SERVER
        )
        exchange.span = RequestSpan(span)
        told: dict[str, str] = {}
        self._contexts.inject(told, set_span_in_context(span))
        if "traceparent" in told:
            # What the client says of its trace's state is of no other trace.
            is_of_client = get_current_span(context).get_span_context().is_valid
            kept = (_TRACEPARENT if is_of_client else _CONTEXT).sub(b"", fields)
            exchange.fields = kept + f"\r\ntraceparent: {told['traceparent']}".encode()

    def close(self) -> None:
        """Send what is left, if anybody takes it soon enough."""
        # Its own deadlines are for each batch: a collector that hangs would delay the end by many.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(LAST_EXPORT_S_MAX)


class RequestSpan:
    """Ended once; safe to repeat."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, exchange: Exchange) -> None:
        span = self._span
        if not span.is_recording():
            return
        path = exchange.target.partition(b"?")[0].decode("ascii", "replace")
        span.set_attributes(
            {
                "http.request.method": exchange.method.decode(),
                "url.path": path,
                "cloister.request_id": exchange.request_id.decode(),
            }
        )
        if exchange.status:
            span.set_attribute("http.response.status_code", exchange.status)
        if exchange.refusal is None:
            route = exchange.route
            span.set_attributes(
                {
                    "cloister.tenant": route.tenant,
                    "cloister.cell": route.pool.cell,
                    "cloister.epoch": route.epoch,
                }
            )
        if exchange.held_s:
            span.set_attribute("cloister.held_ms", round((monotonic() - exchange.held_s) * 1000))
        if exchange.resends:
            span.set_attribute("cloister.resends", exchange.resends)
        if exchange.status == 0 or exchange.status >= 500:
            span.set_status(Status(StatusCode.ERROR, exchange.said or "the answer broke off"))
        span.end()
