"""The query string of a request: names with brackets, as the SDKs write them, to values by name.

`effective_at[gte]=…`, `metadata[key]=…`, `id[]=a&id[]=b`, `status=…` or `status[]=…`. Parameters
nobody asks for are ignored. Every error is Unprocessable with the parameter's name. Knows nothing
of SQL: see `listing`.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qsl

from cell.errors import InvalidRequest, Unprocessable
from cell.wellformed import parse_uuid

PARAMETERS_MAX: Final = 1000


class Query:
    """The parameters of one request; each accessor reads one of them and says what is wrong."""

    __slots__ = ("_maps", "_values")

    def __init__(self, query_string: bytes) -> None:
        self._values: dict[str, list[str]] = {}
        self._maps: dict[str, dict[str, str]] = {}
        for name, value in _pairs(query_string):
            bare, bracket, rest = name.partition("[")
            if not bracket or rest == "]":
                self._values.setdefault(bare, []).append(value)
            elif rest.endswith("]"):
                self._keep(bare, rest[:-1], value)
            else:
                raise Unprocessable(f"{name}: a bracket is not closed", bare)

    def _keep(self, name: str, key: str, value: str) -> None:
        if "][" in key:
            raise Unprocessable(f"{name} takes one key in brackets, as in {name}[key]=value", name)
        entries = self._maps.setdefault(name, {})
        if key in entries:
            raise Unprocessable(f"{name}[{key}] is given more than once", name)
        entries[key] = value

    def text(self, name: str) -> str | None:
        """The one value, None where the parameter is absent."""
        values = self.texts(name)
        if len(values) > 1:
            raise Unprocessable(f"{name} is given more than once", name)
        return values[0] if values else None

    def texts(self, name: str) -> list[str]:
        """All values of `name` and `name[]`."""
        if name in self._maps:
            raise Unprocessable(f"{name} takes no keys in brackets", name)
        return self._values.get(name, [])

    def mapping(self, name: str) -> dict[str, str]:
        """The values of `name[key]`, by key."""
        if name in self._values:
            raise Unprocessable(f"{name} takes keys in brackets, as in {name}[key]=value", name)
        return self._maps.get(name, {})

    def flag(self, name: str) -> bool:
        """`true` or `false`; false where absent."""
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise Unprocessable(f"{name} is true or false, not {value!r}", name)
        return value == "true"

    def uuid(self, name: str) -> str | None:
        value = self.text(name)
        return None if value is None else parse_uuid(value, name)

    def uuids(self, name: str) -> list[str]:
        return [parse_uuid(value, name) for value in self.texts(name)]

    def choice(self, name: str, choices: Iterable[str]) -> str | None:
        """One of the values of a StrEnum."""
        value = self.text(name)
        return None if value is None else _chosen(value, name, choices)

    def choices(self, name: str, choices: Iterable[str]) -> list[str]:
        return [_chosen(value, name, choices) for value in self.texts(name)]


def _pairs(query_string: bytes) -> list[tuple[str, str]]:
    if not query_string:
        return []
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=PARAMETERS_MAX,
        )
    except ValueError as exc:
        raise InvalidRequest(f"the query string is malformed: {exc}") from exc
    for name, value in pairs:
        if "\0" in name or "\0" in value:
            raise Unprocessable("the query string holds the character \\u0000", name.strip("\0"))
    return pairs


def _chosen(value: str, name: str, choices: Iterable[str]) -> str:
    known = [str(choice) for choice in choices]
    if value not in known:
        raise Unprocessable(f"{name} is one of {', '.join(known)}, not {value!r}", name)
    return value
