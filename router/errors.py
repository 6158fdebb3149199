"""Errors of the router, and how they are answered.

RouterError
├── SettingsError                    the process cannot start: a setting is missing or impossible
├── ListenFailed                     the process cannot start: an address cannot be listened on
└── Refusal                          answered to the client as JSON
    ├── BadRequest                   cannot be read on: answered, then the connection is closed
    │   ├── MalformedRequest     400 not HTTP/1.1 as RFC 9112 and our limits allow it
    │   ├── MethodNotAllowed     405 no method of the API
    │   ├── RequestTimeout       408 the client did not send its request in time
    │   ├── BodyTooLarge         413 the body is over the limit
    │   ├── UriTooLong           414 the request target is over the limit
    │   ├── ExpectationFailed    417 an expectation other than 100-continue
    │   └── HeadersTooLarge      431 the header section is over the limit
    ├── InvalidCredentials       401 no credentials, or of no tenant we know
    ├── NotApplied                   a promise: no cell has executed anything
    │   ├── NoRoutingTable       503 no table was ever loaded
    │   ├── TenantUnresolved     503 an unknown tenant while the table is stale
    │   ├── TooManyRequests      429 the tenant is over its rate, or has too much in flight
    │   ├── RouterOverloaded     503 a bound of this router is reached
    │   ├── CellOverloaded       503 no connection to the cell came free in time
    │   ├── CellUnreachable      503 the cell does not accept connections, or failed a moment ago
    │   └── TenantMoving         503 held for too long, or one too many, while its tenant moves
    └── OutcomeUnknown               the cell may have executed the request
        ├── AnswerLost           502 the connection broke, or the answer was unusable
        └── AnswerLate           504 no answer within the request's deadline
"""

from typing import ClassVar

import msgspec


class RouterError(Exception):
    """Any error of the router."""


class SettingsError(RouterError):
    """A setting is missing or impossible; the message names it."""


class ListenFailed(RouterError):
    """An address cannot be listened on; the message names it."""


class Refusal(RouterError):
    """An answer the router gives itself."""

    status: ClassVar[int]
    code: ClassVar[str]
    reason: ClassVar[str]
    """Reason phrase of the status line."""
    retryable: bool = False
    """Told to the official SDK by `x-should-retry`, which overrides its own rule by status."""
    closes: ClassVar[bool] = False
    """The rest of the client's bytes cannot be understood, or shall not be read."""
    fields: ClassVar[bytes] = b""
    """Further header lines, each with its leading CRLF."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(Refusal):
    """The request cannot be read on."""

    closes = True


class MalformedRequest(BadRequest):
    """Not HTTP/1.1 as RFC 9112 and our limits allow it."""

    status, code, reason = 400, "malformed_request", "Bad Request"


class MethodNotAllowed(BadRequest):
    """No method of the API."""

    status, code, reason = 405, "method_not_allowed", "Method Not Allowed"
    fields = b"\r\nallow: GET, HEAD, POST, PUT, PATCH, DELETE"


class RequestTimeout(BadRequest):
    """The client did not send its request in time."""

    status, code, reason = 408, "request_timeout", "Request Timeout"
    retryable = True


class BodyTooLarge(BadRequest):
    """The body is over the limit."""

    status, code, reason = 413, "body_too_large", "Content Too Large"


class UriTooLong(BadRequest):
    """The request target is over the limit."""

    status, code, reason = 414, "uri_too_long", "URI Too Long"


class ExpectationFailed(BadRequest):
    """An expectation other than 100-continue."""

    status, code, reason = 417, "expectation_failed", "Expectation Failed"


class HeadersTooLarge(BadRequest):
    """The header section is over the limit."""

    status, code, reason = 431, "headers_too_large", "Request Header Fields Too Large"


class InvalidCredentials(Refusal):
    """No credentials, or of no tenant we know."""

    status, code, reason = 401, "invalid_key", "Unauthorized"
    fields = b'\r\nwww-authenticate: Basic realm="cloister"'


class NotApplied(Refusal):
    """A promise: no cell has executed anything."""

    status, reason = 503, "Service Unavailable"
    retryable = True
    fields = b"\r\nretry-after: 1"


class NoRoutingTable(NotApplied):
    """No table was ever loaded."""

    code = "no_routing_table"


class TenantUnresolved(NotApplied):
    """An unknown tenant while the table is stale: it may have been created meanwhile."""

    code = "tenant_unresolved"


class TooManyRequests(NotApplied):
    """The tenant is over its rate, or has too many requests in flight."""

    status, code, reason = 429, "too_many_requests", "Too Many Requests"


class RouterOverloaded(NotApplied):
    """A bound of this router is reached."""

    code = "router_overloaded"
    closes = True


class CellOverloaded(NotApplied):
    """No connection to the cell came free in time."""

    code = "cell_overloaded"


class CellUnreachable(NotApplied):
    """The cell does not accept connections, or failed a moment ago."""

    code = "cell_unreachable"


class TenantMoving(NotApplied):
    """Held for too long, or one too many, while its tenant moves."""

    code = "not_applied"


class OutcomeUnknown(Refusal):
    """The cell may have executed the request; only a repeatable one is worth repeating."""

    code = "outcome_unknown"

    def __init__(self, message: str, *, repeatable: bool) -> None:
        super().__init__(message)
        self.retryable = repeatable


class AnswerLost(OutcomeUnknown):
    """The connection broke, or the answer was unusable."""

    status, reason = 502, "Bad Gateway"


class AnswerLate(OutcomeUnknown):
    """No answer within the request's deadline."""

    status, reason = 504, "Gateway Timeout"


REFUSALS: tuple[type[Refusal], ...] = (
    MalformedRequest,
    MethodNotAllowed,
    RequestTimeout,
    BodyTooLarge,
    UriTooLong,
    ExpectationFailed,
    HeadersTooLarge,
    InvalidCredentials,
    NoRoutingTable,
    TenantUnresolved,
    TooManyRequests,
    RouterOverloaded,
    CellOverloaded,
    CellUnreachable,
    TenantMoving,
    AnswerLost,
    AnswerLate,
)
"""Every answer the router can give itself; bounds the labels of the metric that counts them."""


def render_refusal(refusal: Refusal, request_id: bytes, *, close: bool, bodiless: bool) -> bytes:
    """The whole answer. `bodiless` leaves the body out but not its length: the answer to HEAD."""
    body = msgspec.json.encode({"errors": {"code": refusal.code, "message": refusal.message}})
    return b"".join(
        (
            f"HTTP/1.1 {refusal.status} {refusal.reason}".encode(),
            b"\r\ncontent-type: application/json\r\nx-should-retry: ",
            b"true" if refusal.retryable else b"false",
            refusal.fields,
            b"\r\nx-request-id: ",
            request_id,
            b"\r\ncontent-length: %d" % len(body),
            b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n",
            b"" if bodiless else body,
        )
    )
