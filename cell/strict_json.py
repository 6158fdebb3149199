"""Strict JSON: bytes of a request to one typed value, or the error that names what is wrong.

Two passes over a body. The first refuses what a lenient parser would silently settle: duplicate
keys, NaN, Infinity and what rounds to it, NUL, lone surrogates, invalid UTF-8, a byte order mark,
deep nesting. The second converts to a msgspec struct, strictly: no number from a string, no integer
from 1.0 or true. Integers stay exact at any length. Called by the tenant API and by the operator
API.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from cell.errors import InvalidRequest, TooLarge, Unprocessable

DEPTH_MAX: Final = 32
VALUES_MAX: Final = 100_000
"""Values in one body, and escapes in its texts: a bound on the time its parsing takes. A thousand
entries with every field and ten keys of metadata each hold 20,000."""

_MARKS: Final = (b",", b":", b"[", b"{", b"\\", b"-0")
"""What there is at least one of for each value, or for what else takes time."""

Body = TypeVar("Body")


def decode(body: bytes, kind: type[Body]) -> Body:
    """The body as a `kind`.

    Raises InvalidRequest where the bytes are not one well-formed JSON document, TooLarge above
    VALUES_MAX, and Unprocessable with the parameter's name where a field is missing or mistyped.
    """
    return convert(_parse(body), kind)


def convert(value: object, kind: type[Body]) -> Body:
    """A part of a decoded body as a `kind`; raises Unprocessable as `decode` does."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise _translate(str(exc)) from exc


def _parse(body: bytes) -> object:
    # A shorter body cannot hold so many.
    if len(body) > VALUES_MAX and max(map(body.count, _MARKS)) > VALUES_MAX:
        raise TooLarge(f"the body holds more than {VALUES_MAX} values")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the body is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    try:
        value = _DECODER.decode(text)
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        # No JSON, or an integer of more than the 4,300 digits which Python would convert.
        raise InvalidRequest(f"the body is not JSON: {exc}") from exc
    # The exact checks are slow; the quick ones before them never miss, and are rarely wrong. All
    # of them rely on the text being JSON.
    if "\\u" in text:
        _refuse_escapes(text)
    if text.count("[") + text.count("{") > DEPTH_MAX:
        _refuse_depth(text)
    if _NEGATIVE_ZERO.search(text):
        _refuse_negative_zero(text)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = _first_repeated(key for key, _ in pairs)
        raise InvalidRequest(f"the key {twice!r} is given more than once", parameter=twice)
    return found


def _first_repeated(keys: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _refuse_constant(name: str) -> float:
    raise InvalidRequest(f"the body is not JSON: {name} is no number")


def _some_float(text: str) -> float:
    """Some float for whatever the number: no field takes one, the typed pass refuses even 1.0.

    But 1e400, which others would silently read as infinity, is refused wherever it stands.
    """
    if math.isinf(float(text)):
        raise InvalidRequest("the body holds a number that is too large for a float")
    return 0.5


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_some_float, parse_constant=_refuse_constant
)

_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_NEGATIVE_ZERO: Final = re.compile(r"-0(?:[,\s\]}]|$)")
"""Begins with a literal, for which the regex engine has a fast search."""


def _refuse_escapes(text: str) -> None:
    """Refuse \\u0000, which Postgres cannot store, and surrogates that are no pair."""
    high_ends_at: int | None = None
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else None
        is_low = code is not None and 0xDC00 <= code <= 0xDFFF
        is_awaited = high_ends_at == escape.start()
        if is_low != is_awaited or (high_ends_at is not None and not is_awaited):
            raise InvalidRequest("the body holds a surrogate that is not part of a pair")
        if code == 0:
            raise InvalidRequest("the body holds the character \\u0000")
        is_high = code is not None and 0xD800 <= code <= 0xDBFF
        high_ends_at = escape.end() if is_high else None
    if high_ends_at is not None:
        raise InvalidRequest("the body holds a surrogate that is not part of a pair")


def _refuse_depth(text: str) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH_MAX:
            raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested more than {DEPTH_MAX} levels deep")


def _refuse_negative_zero(text: str) -> None:
    """-0 is a float's idea; as an amount it can only be a mistake."""
    if _NEGATIVE_ZERO.search(_STRING.sub('""', text)):
        raise InvalidRequest("the body holds the number -0")


_MESSAGE: Final = re.compile(
    r"(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?", re.DOTALL
)
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>.*)`")


def _translate(message: str) -> Unprocessable:
    """msgspec's "Expected `int`, got `str` - at `$.ledger_entries[0].amount`", for the client."""
    parts = _MESSAGE.fullmatch(message)
    assert parts is not None, message
    what, path = parts["what"], (parts["path"] or "").removesuffix("[...]")
    missing = _MISSING.fullmatch(what)
    if missing is not None:
        parameter = f"{path}.{missing['field']}" if path else missing["field"]
        return Unprocessable(f"{parameter} is missing", parameter, code="parameter_missing")
    return Unprocessable(f"{path or 'the body'}: {_lower_first(what)}", path or None)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
