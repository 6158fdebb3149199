"""Prebuilt HTTP requests: what a load generator sends, described as data.

A request kind is a list of parts that are joined for each request: fixed text, a number that is new
each time, or the next of a list of fragments of equal length. Equal lengths make Content-Length a
constant, so that a request costs one `bytes.join`. The description is JSON, so that the generator
can run as a process of its own.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

UNIQUE_DIGITS = 12
"""Digits of a unique number; fixed, so that Content-Length is too."""


class Text(msgspec.Struct, frozen=True, tag="text"):
    text: str


class Unique(msgspec.Struct, frozen=True, tag="unique"):
    """A number of UNIQUE_DIGITS digits that no other request of the kind carries."""

    first: int = 0


class OneOf(msgspec.Struct, frozen=True, tag="one_of"):
    """The next of the fragments, round and round; shuffle them beforehand."""

    fragments: Sequence[str]


Part = Text | Unique | OneOf


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request."""

    name: str
    parts: Sequence[Part]
    weight: float = 1.0
    """Share of this kind in a mix, relative to the others."""
    expect: int = 200
    """The status of a good answer; all others are counted as unexpected."""


def get(name: str, path: Sequence[Part], headers: Mapping[str, str], weight: float = 1.0) -> Kind:
    """A GET; `headers` must hold Host."""
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    parts = [Text("GET "), *path, Text(f" HTTP/1.1\r\n{lines}\r\n")]
    return Kind(name=name, parts=parts, weight=weight)


def post(
    name: str,
    path: str,
    headers: Sequence[tuple[str, Sequence[Part]]],
    body: Sequence[Part],
    weight: float = 1.0,
) -> Kind:
    """A JSON POST; `headers` must hold Host. Raises ValueError on fragments of unequal lengths."""
    parts: list[Part] = [Text(f"POST {path} HTTP/1.1\r\n")]
    for key, value in headers:
        parts += [Text(f"{key}: "), *value, Text("\r\n")]
    length = sum(part_length(part) for part in body)
    parts.append(Text(f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"))
    return Kind(name=name, parts=[*parts, *body], weight=weight, expect=201)


def part_length(part: Part) -> int:
    match part:
        case Text(text):
            return len(text.encode())
        case Unique():
            return UNIQUE_DIGITS
        case OneOf(fragments):
            lengths = {len(fragment.encode()) for fragment in fragments}
            if len(lengths) != 1:
                raise ValueError(f"fragments must be of one length, these have {sorted(lengths)}")
            return lengths.pop()


def generator(kind: Kind) -> Callable[[], bytes]:
    """A function that gives the next request of the kind."""
    parts = merged(kind.parts)
    if len(parts) == 1 and isinstance(parts[0], Text):
        whole = parts[0].text.encode()
        return lambda: whole
    sources = [source(part) for part in parts]
    rows = zip(*sources, strict=False)
    join = b"".join
    return lambda: join(next(rows))


def merged(parts: Sequence[Part]) -> list[Part]:
    """The parts with neighbouring texts joined into one."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and result and isinstance(result[-1], Text):
            result[-1] = Text(result[-1].text + part.text)
        else:
            result.append(part)
    return result


def source(part: Part) -> Iterator[bytes]:
    match part:
        case Text(text):
            return itertools.repeat(text.encode())
        case Unique(first):
            return (b"%012d" % number for number in itertools.count(first))
        case OneOf(fragments):
            return itertools.cycle([fragment.encode() for fragment in fragments])
