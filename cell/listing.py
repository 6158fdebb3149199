"""Listings: the filters and the page of a request to one SELECT (pure).

SQL is put together from constants of this package and placeholders only; whatever the caller sent
is a parameter. A resource declares its filters one line each; see `cell/resources/`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Final, LiteralString, NamedTuple

import msgspec

from cell.errors import Unprocessable
from cell.ids import first_id
from cell.pagination import Page, Position
from cell.parameters import BALANCE_OPERATORS, OPERATORS, Filter, Kind
from cell.query import Query
from cell.timestamps import DAY_US, parse_day, parse_timestamp
from cell.wellformed import METADATA_KEYS_MAX

_INTEGER_DIGITS_MAX: Final = 60
"""Balances are sums and may be longer than one amount; longer than this is no question."""

NEAR_ROWS: Final = 500
"""How far a list is walked for what may be anywhere, before it is looked up."""

PAGES_ALONG: Final = 2
"""The same in pages, along an account: its latest are in the range of times asked for, or they are
not, which is soon seen; each is in a block of its own."""

ORDERS: Final = ("created_at", "effective_at")
_BY_ID: Final = ("created_at",)


class Reading(Enum):
    """How a page is come by.

    A walk in the order of an index ends with the page, if all that the index does not answer is
    often true. Of what was dated, changed or marked long ago Postgres thinks just that, and would
    pass over everything newer first: it knows how much there is of it, not where. So such a list is
    walked for some rows, which is where most pages end; else whatever matches is looked up in its
    index, and put in order afterwards. No page costs more than that walk and what matches.
    """

    AS_PLANNED = auto()
    NEAR = auto()
    """Perhaps not all of the page."""
    BY_MATCH = auto()


class Filters:
    """The WHERE clause of one listing, grown filter by filter."""

    def __init__(self, query: Query, alias: LiteralString, tenant_id: str) -> None:
        self.query = query
        self._alias: LiteralString = alias
        self.tenant_id = tenant_id
        self._conditions: list[_Condition] = []
        self._in_order_of: tuple[str, ...] | None = ORDERS
        self.add(alias + ".tenant_id = %s", tenant_id)

    def add(
        self,
        condition: LiteralString,
        *parameters: object,
        in_order_of: tuple[str, ...] | None = ORDERS,
    ) -> None:
        """`in_order_of` as of a `Filter`."""
        self._conditions.append(_Condition(condition, parameters, in_order_of))

    def apply(self, declared: Iterable[Filter]) -> None:
        """Read each filter from the query and restrict the listing by those that are there."""
        for one in declared:
            self._in_order_of = one.in_order_of
            self._apply(one.name, one.kind, one.sql, one.choices)
            if one.ids or one.since_creation:
                self._created(one.name, one.ids or one.since_creation, is_creation=bool(one.ids))

    def _apply(self, name: str, kind: Kind, sql: LiteralString, choices: Iterable[str]) -> None:
        match kind:
            case Kind.TEXT:
                self._equal(sql, self.query.text(name))
            case Kind.ID:
                self._equal(sql, self.query.uuid(name))
            case Kind.CHOICE:
                self._equal(sql, self.query.choice(name, choices))
            case Kind.TEXTS:
                self._any(sql, self.query.texts(name), "text")
            case Kind.IDS:
                self._any(sql, self.query.uuids(name), "uuid")
            case Kind.CHOICES:
                self._any(sql, self.query.choices(name, choices), "text")
            case Kind.TIMES:
                self._range(name, sql, OPERATORS, parse_timestamp, "%s::bigint")
            case Kind.DAYS:
                self._days(name, sql)
            case Kind.INTEGERS:
                self._range(name, sql, OPERATORS, _parse_integer, "%s::numeric")
            case Kind.BALANCES:
                self._range(name, sql, BALANCE_OPERATORS, _parse_integer, "%s::numeric")
            case Kind.METADATA:
                self._metadata(name, sql)
            case _:
                raise AssertionError(f"{name}: a listing cannot be filtered by a {kind}")

    def _equal(self, sql: LiteralString, value: str | None) -> None:
        if value is not None:
            self._compare(sql, "=", "%s", value)

    def _any(self, sql: LiteralString, values: list[str], element: LiteralString) -> None:
        if values:
            self._compare(sql, "=", f"ANY(%s::{element}[])", values)

    def _metadata(self, name: str, sql: LiteralString) -> None:
        """Every pair, exactly."""
        wanted = self.query.mapping(name)
        if len(wanted) > METADATA_KEYS_MAX:
            raise Unprocessable(f"{name} takes at most {METADATA_KEYS_MAX} keys", name)
        if wanted:
            self._compare(sql, "@>", "%s::jsonb", msgspec.json.encode(wanted).decode())

    def _days(self, name: str, sql: LiteralString) -> None:
        """Conditions on days as conditions on times; a day is [midnight, next midnight), UTC."""
        for operator, text in self._operands(name, OPERATORS):
            # A caller's datetime arrives as a full timestamp; its UTC day is meant.
            start = parse_day(text, name)
            if operator != "eq":
                is_next = operator in ("gt", "lte")
                of_times: LiteralString = ">=" if operator in ("gt", "gte") else "<"
                self._compare(sql, of_times, "%s::bigint", start + DAY_US * is_next)
            else:
                self._compare(sql, ">=", "%s::bigint", start)
                self._compare(sql, "<", "%s::bigint", start + DAY_US)

    def having(self, name: str, expression: LiteralString) -> tuple[LiteralString, list[object]]:
        """The conditions of an amount range on an aggregate, for a HAVING clause; may be empty."""
        parts: list[LiteralString] = []
        parameters: list[object] = []
        for operator, text in self._operands(name, OPERATORS):
            parts.append(f"{expression} {OPERATORS[operator]} %s::numeric")
            parameters.append(_parse_integer(text, name))
        return " AND ".join(parts), parameters

    def where(self) -> tuple[LiteralString, list[object]]:
        """The clause as it stands, for a statement that is not of the form of `select`."""
        return _joined(self._conditions)

    def is_scattered(self, page: Page) -> bool:
        """May rows that match be far from where the list begins, and is there an index of them?"""
        by = page.order.by
        return any(
            one.in_order_of is not None and by not in one.in_order_of for one in self._conditions
        )

    def select(
        self,
        page: Page,
        *,
        shown: LiteralString,
        source: LiteralString,
        beside: LiteralString = "",
        joined: LiteralString = "",
        effective_at: LiteralString = "",
        along: LiteralString = "",
        reading: Reading = Reading.AS_PLANNED,
    ) -> tuple[LiteralString, list[object]]:
        """The statement that reads one row more than the page holds, and its parameters.

        `source` is the table, `beside` what is joined to it for the filters; `shown` is made of the
        page's rows and `joined`, and not, as one SELECT would do, of all that match. `effective_at`
        is the column for listings that can be ordered by it; `along` one that grows with the ids of
        what the filters leave, where an index has it before them.
        """
        order: LiteralString = self._order(page, effective_at, along)
        conditions = self._conditions
        if page.after is not None:
            conditions = [*conditions, self._beyond(page, page.after, effective_at)]
        rows: LiteralString
        if reading is Reading.NEAR:
            walk_rows = PAGES_ALONG * (page.per_page + 1) if along else NEAR_ROWS
            rows, parameters = self._rows_near(page, conditions, source, beside, order, walk_rows)
        else:
            where, parameters = _joined(conditions)
            from_: LiteralString = f"{source} {beside}" if beside else source
            rows = f"SELECT {self._alias}.* FROM {from_} WHERE {where}"
            if reading is Reading.BY_MATCH:
                # OFFSET: planned as if all were wanted, which is the truth, wherever they are.
                rows = f"SELECT {self._alias}.* FROM ({rows} OFFSET 0) {self._alias}"
            rows = f"{rows} ORDER BY {order} LIMIT %s"
            parameters.append(page.per_page + 1)
        return f"SELECT {shown} FROM ({rows}) {self._alias} {joined} ORDER BY {order}", parameters

    def _rows_near(
        self,
        page: Page,
        conditions: Sequence["_Condition"],
        source: LiteralString,
        beside: LiteralString,
        order: LiteralString,
        walk_rows: int,
    ) -> tuple[LiteralString, list[object]]:
        by = page.order.by
        walked, walk_parameters = _joined([one for one in conditions if one.is_walked(by)])
        where, parameters = _joined([one for one in conditions if not one.is_walked(by)])
        rows: LiteralString = (
            f"SELECT {self._alias}.* FROM (SELECT {self._alias}.* FROM {source} WHERE {walked} "
            f"ORDER BY {order} LIMIT %s) {self._alias} {beside} WHERE {where} "
            f"ORDER BY {order} LIMIT %s"
        )
        return rows, [*walk_parameters, walk_rows, *parameters, page.per_page + 1]

    def _beyond(self, page: Page, after: Position, effective_at: LiteralString) -> "_Condition":
        beyond: LiteralString = " < " if page.order.is_descending else " > "
        identity: LiteralString = self._alias + ".id"
        if page.order.by == "effective_at":
            condition: LiteralString = f"({effective_at}, {identity}){beyond}(%s::bigint, %s::uuid)"
            return _Condition(condition, (after.key, after.id), ORDERS)
        return _Condition(f"{identity}{beyond}%s::uuid", (after.id,), ORDERS)

    def _order(
        self, page: Page, effective_at: LiteralString, along: LiteralString
    ) -> LiteralString:
        direction: LiteralString = " DESC" if page.order.is_descending else ""
        by_id: LiteralString = self._alias + ".id" + direction
        if page.order.by == "effective_at":
            return effective_at + direction + ", " + by_id
        return along + direction + ", " + by_id if along else by_id

    def _range(
        self,
        name: str,
        sql: LiteralString,
        operators: Mapping[str, LiteralString],
        parse: Callable[[str, str], int],
        placeholder: LiteralString,
    ) -> None:
        for operator, text in self._operands(name, operators):
            self._compare(sql, operators[operator], placeholder, parse(text, name))

    def _created(self, name: str, ids: LiteralString, *, is_creation: bool) -> None:
        """The bounds of ids that follow: both of a time of creation, else those from above."""
        for operator, text in self._operands(name, OPERATORS):
            at_us = parse_timestamp(text, name)
            if is_creation and operator in ("gt", "gte", "eq"):
                self.add(ids + " >= %s::uuid", first_id(at_us), in_order_of=_BY_ID)
            if operator in ("lt", "lte", "eq"):
                self.add(ids + " < %s::uuid", first_id(at_us + 1), in_order_of=_BY_ID)

    def _compare(
        self, sql: LiteralString, operator: LiteralString, operand: LiteralString, value: object
    ) -> None:
        """A filter's condition on one value, from its column or its own words."""
        if "%s" in sql:
            condition: LiteralString = sql.replace("{op}", operator)
            values = [value] * sql.count("%s")
        else:
            condition, values = f"{sql} {operator} {operand}", [value]
        self.add(condition, *values, in_order_of=self._in_order_of)

    def _operands(self, name: str, operators: Mapping[str, LiteralString]) -> list[tuple[str, str]]:
        asked = self.query.mapping(name)
        for operator in asked:
            if operator not in operators:
                known = ", ".join(operators)
                raise Unprocessable(f"{name} takes {known}, not {operator!r}", name)
        return list(asked.items())


def _parse_integer(text: str, parameter: str) -> int:
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= _INTEGER_DIGITS_MAX:
        return int(text)
    raise Unprocessable(f"{parameter}: {text[:80]!r} is not a whole number", parameter)


class _Condition(NamedTuple):
    sql: LiteralString
    parameters: tuple[object, ...]
    in_order_of: tuple[str, ...] | None

    def is_walked(self, order: str) -> bool:
        """Does a walk in the order pass over few rows for it?"""
        return self.in_order_of is not None and order in self.in_order_of


def _joined(conditions: Sequence[_Condition]) -> tuple[LiteralString, list[object]]:
    parts = [one.sql for one in conditions]
    return " AND ".join(parts), [value for one in conditions for value in one.parameters]
