"""Reading heads that repeat an earlier one, by comparison instead of by parsing. Pure.

Clients and cells repeat themselves: most requests differ from the one before in nothing but the
path, writes in their idempotency key and content length besides, answers in their length and
request id. A head that the parser has accepted is kept as its literal pieces with holes for these
values. A piece of data that matches it, from the first byte of a message to the last of its body,
is read by a few comparisons instead of a call for each header.

This reads no message differently than the parser would: what may vary must match patterns narrower
than the parser's own, every other byte is one it has accepted in that very place, and where the
body ends follows from the content length alone. Whatever does not match is left to the parser.
"""

import re
from typing import Final, NamedTuple

from router.framing import PLAIN_REQUEST_LINE

HEAD_BYTES_MAX: Final = 4 * 1024
"""Longer heads are not worth their memory."""
LENGTH_DIGITS_MAX: Final = 9

_REQUEST_HOLE: Final = re.compile(rb"\r\n(content-length|idempotency-key):[ \t]*", re.IGNORECASE)
_ANSWER_HOLE: Final = re.compile(rb"\r\n(content-length|x-request-id):[ \t]*", re.IGNORECASE)
_KEY_BYTES: Final = bytes(range(0x21, 0x7F))
"""Of idempotency keys in holes: visible ASCII."""


class Template(NamedTuple):
    """The literal pieces of a head, and what its holes are for."""

    pieces: tuple[tuple[bytes, bool], ...]
    """What stands before each hole, from the one before on; whether it is the length's."""
    tail: bytes
    """What stands after the last hole; ends with the empty line."""


class RepeatedRequest(NamedTuple):
    template: Template
    fields: bytes
    """The lines to forward, without the idempotency key's."""
    has_length: bool


class RepeatedAnswer(NamedTuple):
    template: Template
    status: int
    fields: bytes
    """The lines to pass on, without framing and request id."""


def repeatable_request(data: bytes, fields: bytes) -> RepeatedRequest | None:
    """What to keep of this data, one request that the parser has read; None if it is not plain, or
    not one whole request."""
    line = PLAIN_REQUEST_LINE.match(data)
    if line is None:
        return None
    template = _template(data, line.end(), _REQUEST_HOLE)
    if template is None:
        return None
    return RepeatedRequest(template, fields, any(is_length for _, is_length in template.pieces))


def read_repeated_request(
    known: RepeatedRequest, data: bytes
) -> tuple[bytes, bytes, bytes | None, bytes] | None:
    """Method, target, idempotency key and body, if the data is one whole request of this head."""
    line = PLAIN_REQUEST_LINE.match(data)
    if line is None:
        return None
    filled = _fill(known.template, data, line.end())
    if filled is None:
        return None
    key, end = filled
    if key is not None and (not key or key.translate(None, _KEY_BYTES)):
        return None
    return line[1], line[2], key, data[end:]


def repeatable_answer(data: bytes, status: int, fields: bytes) -> RepeatedAnswer | None:
    """What to keep of this data, one answer with a length that the parser has read."""
    template = _template(data, 0, _ANSWER_HOLE)
    if template is None or not any(is_length for _, is_length in template.pieces):
        return None
    return RepeatedAnswer(template, status, fields)


def read_repeated_answer(known: RepeatedAnswer, data: bytes, request_id: bytes) -> bytes | None:
    """The body, if the data is one whole answer of this head to the request of this id."""
    filled = _fill(known.template, data, 0)
    if filled is None:
        return None
    answered_id, end = filled
    return data[end:] if answered_id is None or answered_id == request_id else None


def _template(data: bytes, at: int, hole: re.Pattern[bytes]) -> Template | None:
    """Of the head in this data from `at` on; None unless its body is all that follows."""
    end = data.find(b"\r\n\r\n", at) + 4
    if end > HEAD_BYTES_MAX or not (at == 0 or data.startswith(b"\r\n", at)):
        return None
    pieces: list[tuple[bytes, bool]] = []
    length = 0
    for name in hole.finditer(data, at, end - 2):
        is_length = name[1].lower() == b"content-length"
        pieces.append((data[at : name.end()], is_length))
        at = data.index(b"\r", name.end())
        if is_length:
            length = int(data[name.end() : at])
    return Template(tuple(pieces), data[at:end]) if len(data) == end + length else None


def _fill(template: Template, data: bytes, at: int) -> tuple[bytes | None, int] | None:
    """What is in the hole that is not the length's, and where the head ends; None unless the head
    is of this template from `at` on, and its body is all that follows."""
    length, other = 0, None
    for piece, is_length in template.pieces:
        if not data.startswith(piece, at):
            return None
        start = at + len(piece)
        at = data.find(b"\r", start)
        if not is_length:
            other = data[start:at]
            continue
        digits = data[start:at]
        if not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX:
            return None
        length = int(digits)
    end = at + len(template.tail)
    if not data.startswith(template.tail, at) or len(data) != end + length:
        return None
    return other, end
