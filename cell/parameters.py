"""Parameters of a query string as data: what is parsed and what is described are one declaration.

`listing.Filters.apply` reads the filters of a list, `openapi` describes them. The accessors that
read one parameter of each kind are those of `query.Query`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, LiteralString


class Kind(StrEnum):
    """What a parameter takes."""

    TEXT = "text"
    TEXTS = "texts"
    """`name[]=…`, several, or one as `name=…`; so IDS and CHOICES."""
    ID = "id"
    IDS = "ids"
    CHOICE = "choice"
    """One of `choices`."""
    CHOICES = "choices"
    FLAG = "flag"
    """`true` or `false`."""
    COUNT = "count"
    """A whole number above 0."""
    INTEGER = "integer"
    TIME = "time"
    KEYED_TIMES = "keyed_times"
    """`name[key]=…`, with the keys of `choices`: a timestamp, a date or a lock version."""
    TIMES = "times"
    """`name[gte]=timestamp`, with gt, gte, lt, lte, eq; so DAYS and INTEGERS."""
    DAYS = "days"
    INTEGERS = "integers"
    BALANCES = "balances"
    """As INTEGERS, and not_eq."""
    METADATA = "metadata"
    """`name[key]=text`, any keys."""
    ORDER = "order"
    """`name[field]=asc` or `desc`, one of the fields of `choices`."""


OPERATORS: Final[Mapping[str, LiteralString]] = {
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "eq": "=",
}
"""As callers write them, and in SQL."""

BALANCE_OPERATORS: Final[Mapping[str, LiteralString]] = {**OPERATORS, "not_eq": "<>"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a query string."""

    name: str
    """Without brackets: those follow from the kind."""
    kind: Kind
    choices: Iterable[str] = field(default=(), kw_only=True)
    """Words, keys or fields; empty for kinds that have none."""


@dataclass(frozen=True, slots=True)
class Filter(Parameter):
    """A parameter that restricts a list."""

    sql: LiteralString
    """A column; or, where it holds `%s`, a whole condition on the value. Kinds with operators take
    the operator in place of `{op}`: `EXISTS (SELECT … WHERE at_us {op} %s)`."""
    ids: LiteralString = field(default="", kw_only=True)
    """Of TIMES: a column of ids, which are of the time of creation. A range of creation times is
    found in the index of ids, which is the list's order, too."""
    since_creation: LiteralString = field(default="", kw_only=True)
    """Of TIMES: a column of ids of rows whose time here is never before their creation. What was so
    by a certain time has been created by then."""
    in_order_of: tuple[str, ...] | None = field(default=("created_at",), kw_only=True)
    """The orders in which an index has the rows that match; None where there is no such index. In
    any other order, what matches may be far from where the list begins: see `listing.Reading`."""
