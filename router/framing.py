"""What a message's head means and how it is written anew. Pure: bytes and values in and out.

llhttp has parsed the bytes, strictly; here is decided which headers pass, which are acted upon and
which end here. Nothing is copied from one side to the other but names and values that passed, in
framing of our own: so a client cannot make a cell read other boundaries than the router did.

`Field` sorts header names: a name that passes is kept as the bytes that start its new line, so that
writing the line is one join; everything else is a `Noted`. Callers: both kinds of connections.
"""

import re
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

from cell import wire
from cell.signature import SIGNATURE_HEADER, Signer
from control_plane.routing import Epoch
from router.errors import ExpectationFailed, HeadersTooLarge, MalformedRequest, MethodNotAllowed
from router.exchange import Exchange

HEADER_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 100
URI_BYTES_MAX: Final = 8 * 1024
NAMES_LEARNT_MAX: Final = 1024
"""Header names whose sorting is remembered; bounded because clients choose the names."""
NAME_BYTES_LEARNT_MAX: Final = 64

METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"))


class Noted(Enum):
    """Headers that the router acts upon, or drops."""

    HOST = b"host"
    AUTHORIZATION = b"authorization"
    CONTENT_LENGTH = b"content-length"
    TRANSFER_ENCODING = b"transfer-encoding"
    CONNECTION = b"connection"
    IDEMPOTENCY_KEY = b"idempotency-key"
    EXPECT = b"expect"
    VERDICT = wire.NOT_APPLIED_HEADER.encode()
    EPOCH = wire.EPOCH_HEADER.encode()
    DROPPED = b""


# Enum members are slow to reach through their class, and these are compared for every header.
HOST: Final = Noted.HOST
AUTHORIZATION: Final = Noted.AUTHORIZATION
CONTENT_LENGTH: Final = Noted.CONTENT_LENGTH
TRANSFER_ENCODING: Final = Noted.TRANSFER_ENCODING
CONNECTION: Final = Noted.CONNECTION
IDEMPOTENCY_KEY: Final = Noted.IDEMPOTENCY_KEY
EXPECT: Final = Noted.EXPECT
DROPPED: Final = Noted.DROPPED
VERDICT: Final = Noted.VERDICT
EPOCH: Final = Noted.EPOCH

Field = bytes | Noted
NotedField = tuple[Noted, bytes, bytes]
"""What it is, its name as it was sent, its value."""

HOP_BY_HOP: Final = frozenset(
    b"keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade"
    b" http2-settings".split()
)
OURS: Final = (wire.HEADER_PREFIX.encode(), b"x-forwarded-")
"""Prefixes of what only the platform may say: a client's copy could pass for a proxy's word."""
OURS_EXACTLY: Final = frozenset(
    (wire.PUBLIC_REQUEST_ID_HEADER.encode(), b"forwarded", b"x-real-ip", b"via")
)
INDISPENSABLE: Final = frozenset(
    (b"host", b"authorization", b"content-length", b"content-type", b"idempotency-key")
)
"""`Connection` may not list these: dropping one would change what the request means."""

REQUEST_NOTED: Final = {
    noted.value: noted
    for noted in (
        HOST,
        AUTHORIZATION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        CONNECTION,
        IDEMPOTENCY_KEY,
        EXPECT,
    )
}
ANSWER_NOTED: Final = {
    noted.value: noted for noted in (CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, VERDICT, EPOCH)
}


MOVING_VERDICTS: Final = frozenset(
    verdict.encode()
    for verdict in (wire.Verdict.FENCED, wire.Verdict.MOVED, wire.Verdict.NOT_OWNER)
)
"""Verdicts whose answer is not passed on: soon this or another cell will take the request."""


def request_field(name: bytes) -> Field:
    """How a request's header of this name is treated."""
    return _field(name, REQUEST_NOTED)


def answer_field(name: bytes) -> Field:
    """How an answer's header of this name is treated."""
    return _field(name, ANSWER_NOTED)


def _field(name: bytes, noted: dict[bytes, Noted]) -> Field:
    lower = name.lower()
    if lower in noted:
        return noted[lower]
    # Servers that turn names into variables read `_` as `-`: judge such a name as what it would
    # become there, and never act upon it.
    dashed = lower.replace(b"_", b"-")
    if dashed in noted or dashed in HOP_BY_HOP or dashed in OURS_EXACTLY or dashed.startswith(OURS):
        return DROPPED
    return b"\r\n%b: " % lower


class FieldMemory:
    """Remembers how names are sorted; `known.get` is the hot path, `learn` the way back to it."""

    def __init__(self, sort: Callable[[bytes], Field]) -> None:
        self._sort = sort
        self.known: dict[bytes, Field] = {}

    def learn(self, name: bytes) -> Field:
        field = self._sort(name)
        if len(self.known) < NAMES_LEARNT_MAX and len(name) <= NAME_BYTES_LEARNT_MAX:
            self.known[name] = field
        return field


REQUEST_FIELDS: Final = FieldMemory(request_field)
ANSWER_FIELDS: Final = FieldMemory(answer_field)


def read_request_head(
    exchange: Exchange, http_version: str, noted: list[NotedField], passed: list[bytes]
) -> None:
    """Fill the exchange from its head; `passed` alternates line starts and values.

    Raises a BadRequest: what it refuses must never reach a cell.
    """
    if exchange.method not in METHODS:
        raise MethodNotAllowed(f"{exchange.method.decode()} is no method of this API")
    check_target(exchange.target)
    if http_version != "1.1":
        if http_version != "1.0":
            raise MalformedRequest(f"HTTP/{http_version} is not spoken here")
        exchange.http_10 = True
    hosts = 0
    listed: frozenset[bytes] = frozenset()
    for field, _, value in noted:
        if field is HOST:
            hosts += 1
            check_host(value)
        elif field is AUTHORIZATION:
            if exchange.authorization is not None:
                raise MalformedRequest("more than one Authorization header")
            exchange.authorization = value
            passed += (_AUTHORIZATION_LINE, value)
        elif field is IDEMPOTENCY_KEY:
            _read_idempotency_key(exchange, value)
        elif field is CONTENT_LENGTH:
            exchange.framed = True
            exchange.length = int(value)
        elif field is CONNECTION:
            listed |= connection_tokens(value)
        elif field is TRANSFER_ENCODING:
            _read_transfer_encoding(exchange, value)
        elif field is EXPECT:
            _read_expectation(exchange, value)
    if hosts != 1 and not (exchange.http_10 and hosts == 0):
        raise MalformedRequest(f"{hosts} Host headers; exactly one is needed")
    if listed:
        if listed & INDISPENSABLE:
            raise MalformedRequest("Connection lists a header that is not hop-by-hop")
        passed = without(passed, listed)
    exchange.fields = b"".join(passed)


_AUTHORIZATION_LINE: Final = b"\r\nauthorization: "
_IDEMPOTENCY_KEY_LINE: Final = b"\r\nidempotency-key: "


def _read_idempotency_key(exchange: Exchange, value: bytes) -> None:
    if exchange.key is not None:
        raise MalformedRequest("more than one Idempotency-Key header")
    exchange.key = value
    if value and exchange.method == b"POST":
        exchange.repeatable = True


def _read_transfer_encoding(exchange: Exchange, value: bytes) -> None:
    # llhttp also lets `gzip, chunked` pass, which would leave the body's coding to be guessed,
    # and HTTP/1.0 knows no transfer codings at all (RFC 9112, 6.1).
    if value.strip(b" \t").lower() != b"chunked" or exchange.http_10:
        raise MalformedRequest("the only transfer coding is chunked, in HTTP/1.1")
    exchange.framed = True


def _read_expectation(exchange: Exchange, value: bytes) -> None:
    if value.strip(b" \t").lower() != b"100-continue":
        raise ExpectationFailed("the only expectation is 100-continue")
    exchange.expects_continue = not exchange.http_10


def check_head_size(noted: list[NotedField], passed: list[bytes]) -> None:
    """Raises HeadersTooLarge."""
    size = sum(map(len, passed)) + sum(len(name) + len(value) + 4 for _, name, value in noted)
    if size > HEADER_BYTES_MAX:
        raise HeadersTooLarge(f"the header section exceeds {HEADER_BYTES_MAX} bytes")


_PLAIN_TARGET: Final = (
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@/?"
)
_HOST_BYTES: Final = (
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+;=:[]"
)


def check_target(target: bytes) -> None:
    """Raises MalformedRequest unless the target is a path with perhaps a query, in plain sight."""
    if target[:1] != b"/":
        raise MalformedRequest("the request target must be a path")
    if not target.translate(None, _PLAIN_TARGET) and b"/." not in target:
        return
    path, _, _ = target.partition(b"?")
    if b"#" in target or b"\\" in path:
        raise MalformedRequest("the request target holds a character that is not allowed")
    for segment in path.split(b"/"):
        if segment.count(b"%") != _escapes(segment):
            raise MalformedRequest("the path holds a broken percent escape")
        decoded = unquote_to_bytes(segment)
        if decoded in (b".", b"..") or b"\0" in decoded:
            raise MalformedRequest("the path holds a dot segment or a NUL")


PLAIN_REQUEST_LINE: Final = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE) "
    rb"((?:/(?!\.)[A-Za-z0-9._~!$&'()*+,;=:@-]*)+"
    rb"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?)"
    rb" HTTP/1\.1"
)
"""A request line that the parser and `check_target` are sure to accept."""

_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


def _escapes(segment: bytes) -> int:
    after_percent = segment.split(b"%")[1:]
    return sum(len(rest) >= 2 and _HEX_DIGITS.issuperset(rest[:2]) for rest in after_percent)


_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) [/*]")


def has_unknown_method(data: bytes) -> bool:
    """Whether bytes that the parser refused begin like a request of a method we do not know."""
    match = _REQUEST_LINE.match(data)
    return match is not None and match[1] not in METHODS


def check_host(value: bytes) -> None:
    """Raises MalformedRequest unless the value could name one host."""
    if not value or value.translate(None, _HOST_BYTES):
        raise MalformedRequest("the Host header names no host")


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """Header names listed by a Connection header; `keep-alive` and `close` are none."""
    lower = value.lower()
    if lower in (b"keep-alive", b"close"):
        return frozenset()
    tokens = frozenset(token.strip(b" \t") for token in lower.split(b","))
    return tokens - {b"", b"keep-alive", b"close"}


def without(passed: list[bytes], listed: frozenset[bytes]) -> list[bytes]:
    """The alternating list less the headers whose names are listed."""
    starts = {b"\r\n%b: " % name for name in listed}
    pairs = zip(passed[::2], passed[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in starts for part in pair]


def epoch_of(value: bytes | None) -> Epoch | None:
    """The epoch beside a verdict; None where the cell did not say, or said nonsense."""
    return Epoch(int(value)) if value is not None and value.isdigit() else None


def request_head(exchange: Exchange, deadline_ms: int, signer: Signer | None) -> bytes:
    """The head as it goes to the cell, up to and including the empty line."""
    key, route = exchange.key, exchange.route
    signature = b""
    if signer is not None:
        path, _, query = exchange.target.partition(b"?")
        signature = _SIGNATURE_LINE + signer.sign(
            exchange.method,
            path,
            query,
            *route.signed,
            exchange.request_id,
            exchange.authorization or b"",
            key or b"",
        )
    return b"%b %b HTTP/1.1%b%b%b%b%b%d%b%b" % (
        exchange.method,
        exchange.target,
        exchange.fields,
        b"" if key is None else _IDEMPOTENCY_KEY_LINE + key,
        route.fields,
        exchange.request_id,
        _DEADLINE_LINE,
        deadline_ms,
        signature,
        b"\r\ncontent-length: %d\r\n\r\n" % len(exchange.body) if exchange.framed else b"\r\n\r\n",
    )


_DEADLINE_LINE: Final = f"\r\n{wire.DEADLINE_HEADER}: ".encode()
_SIGNATURE_LINE: Final = f"\r\n{SIGNATURE_HEADER}: ".encode()


def route_fields(address: str, tenant: str, epoch: int) -> bytes:
    """The lines that are the same for every request of a placement; ends before the request id."""
    return (
        f"\r\nhost: {address}\r\n{wire.TENANT_HEADER}: {tenant}\r\n{wire.EPOCH_HEADER}: {epoch}"
        f"\r\n{wire.REQUEST_ID_HEADER}: "
    ).encode()


STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus
}
_REQUEST_ID_LINE: Final = f"\r\n{wire.PUBLIC_REQUEST_ID_HEADER}: ".encode()


def answer_head(exchange: Exchange, status: int, fields: bytes) -> bytes:
    """The head as it goes to the client, without framing: `finish_head` adds that."""
    line = STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    return b"%b%b%b%b" % (line, fields, _REQUEST_ID_LINE, exchange.request_id)


def whole_answer(head: bytes, body: bytes, *, close: bool) -> bytes:
    """An answer whose body is complete."""
    end = b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n"
    return b"%b\r\ncontent-length: %d%b%b" % (head, len(body), end, body)


def bodiless_answer(head: bytes, length: bytes | None, *, close: bool) -> bytes:
    """The answer to HEAD, or a 204 or 304; the length is what the cell said it would be."""
    end = b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n"
    return b"%b\r\ncontent-length: %b%b" % (head, length, end) if length else head + end


def streamed_head(head: bytes, length: bytes | None, *, chunked: bool, close: bool) -> bytes:
    """The head of an answer whose body follows in parts; neither means: until the end."""
    parts = [head]
    if length is not None:
        parts.append(b"\r\ncontent-length: " + length)
    elif chunked:
        parts.append(b"\r\ntransfer-encoding: chunked")
    parts.append(b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n")
    return b"".join(parts)


LAST_CHUNK: Final = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk; not for empty data, which would end the body."""
    assert data, "an empty chunk ends a chunked body"
    return b"%x\r\n%b\r\n" % (len(data), data)
