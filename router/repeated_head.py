"""Reading requests whose head repeats an earlier one of the same connection. Pure.

Clients repeat themselves: most requests differ from the one before in nothing but the path, and
writes in their idempotency key and content length besides. A head the parser has accepted is kept
as its literal pieces with holes for these two values. A piece of data that matches it, from the
first byte of a request to the last of its body, is read by a few comparisons instead of a call for
each header.

This reads no request differently than the parser would: the line and the values in the holes match
patterns narrower than the parser's own, every other byte is one it has accepted in that very place,
and where the body ends follows from the content length alone. Whatever does not match is left to
the parser.
"""

import re
from typing import Final, NamedTuple

from router.framing import PLAIN_REQUEST_LINE

SECTION_BYTES_MAX: Final = 4 * 1024
"""Longer header sections are not worth their memory."""
LENGTH_DIGITS_MAX: Final = 9

_HOLE: Final = re.compile(rb"\r\n(content-length|idempotency-key):[ \t]*", re.IGNORECASE)
_KEY_BYTES: Final = bytes(range(0x21, 0x7F))
"""Of idempotency keys in holes: visible ASCII."""


class RepeatedHead(NamedTuple):
    holes: tuple[tuple[bytes, bool], ...]
    """What stands before each hole, from the one before on, and whether it is the length's."""
    tail: bytes
    """What stands after the last hole; ends with the empty line."""
    fields: bytes
    """The lines to forward, without the idempotency key's."""
    has_length: bool


class RepeatedRequest(NamedTuple):
    method: bytes
    target: bytes
    key: bytes | None
    body: bytes


def repeatable_head(data: bytes, fields: bytes) -> RepeatedHead | None:
    """To be kept of this data: one request, whole, that the parser has read; its lines to forward,
    less the idempotency key's. None if it is not plain, or not one whole request."""
    line = PLAIN_REQUEST_LINE.match(data)
    end = data.find(b"\r\n\r\n") + 4
    if line is None or not data.startswith(b"\r\n", line.end()) or end > SECTION_BYTES_MAX:
        return None
    holes: list[tuple[bytes, bool]] = []
    at, length = line.end(), 0
    for name in _HOLE.finditer(data, at, end - 2):
        holes.append((data[at : name.end()], name[1].lower() == b"content-length"))
        at = data.index(b"\r", name.end())
        if holes[-1][1]:
            length = int(data[name.end() : at])
    if len(data) != end + length:
        return None
    has_length = any(is_length for _, is_length in holes)
    return RepeatedHead(tuple(holes), data[at:end], fields, has_length)


def read_repeated(head: RepeatedHead, data: bytes) -> RepeatedRequest | None:
    """The request that this data is, if it is one whole request with this head."""
    line = PLAIN_REQUEST_LINE.match(data)
    if line is None:
        return None
    at, length, key = line.end(), 0, None
    for before, is_length in head.holes:
        start = at + len(before)
        at_hole, at = at, data.find(b"\r", start)
        value = data[start:at]
        if not data.startswith(before, at_hole):
            return None
        if not is_length:
            key = value
            if not key or key.translate(None, _KEY_BYTES):
                return None
        elif not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
            return None
        else:
            length = int(value)
    end = at + len(head.tail)
    if not data.startswith(head.tail, at) or len(data) != end + length:
        return None
    method, target = line.groups()
    return RepeatedRequest(method, target, key, data[end:])
