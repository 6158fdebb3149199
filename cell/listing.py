"""Listings: the filters and the page of a request to one SELECT (pure).

SQL is put together from constants of this package and placeholders only; whatever the caller sent
is a parameter. A resource declares its filters one line each; see `cell/resources/`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, LiteralString

import msgspec

from cell.errors import Unprocessable
from cell.ids import first_id
from cell.pagination import Page
from cell.parameters import BALANCE_OPERATORS, OPERATORS, Filter, Kind
from cell.query import Query
from cell.timestamps import DAY_US, parse_day, parse_timestamp
from cell.wellformed import METADATA_KEYS_MAX

_INTEGER_DIGITS_MAX: Final = 60
"""Balances are sums and may be longer than one amount; longer than this is no question."""


class Filters:
    """The WHERE clause of one listing, grown filter by filter."""

    def __init__(self, query: Query, alias: LiteralString, tenant_id: str) -> None:
        self.query = query
        self._alias: LiteralString = alias
        self._conditions: list[LiteralString] = [alias + ".tenant_id = %s"]
        self._parameters: list[object] = [tenant_id]

    def add(self, condition: LiteralString, *parameters: object) -> None:
        self._conditions.append(condition)
        self._parameters.extend(parameters)

    def apply(self, declared: Iterable[Filter]) -> None:
        """Read each filter from the query and restrict the listing by those that are there."""
        for one in declared:
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
        return " AND ".join(self._conditions), list(self._parameters)

    def select(
        self,
        page: Page,
        *,
        shown: LiteralString,
        source: LiteralString,
        joined: LiteralString = "",
        effective_at: LiteralString = "",
    ) -> tuple[LiteralString, list[object]]:
        """The statement that reads one row more than the page holds, and its parameters.

        `source` is what the filters are about; `shown` is made of the page's rows and `joined`,
        and not, as one SELECT would do, of all that match. `effective_at` is the column for
        listings that can be ordered by it.
        """
        beyond: LiteralString = " < " if page.order.is_descending else " > "
        order: LiteralString = self._order(page, effective_at)
        identity: LiteralString = self._alias + ".id"
        conditions, parameters = list(self._conditions), list(self._parameters)
        if page.after is not None and page.order.by == "effective_at":
            conditions.append(f"({effective_at}, {identity}){beyond}(%s::bigint, %s::uuid)")
            parameters += [page.after.key, page.after.id]
        elif page.after is not None:
            conditions.append(identity + beyond + "%s::uuid")
            parameters.append(page.after.id)
        where: LiteralString = " AND ".join(conditions)
        statement: LiteralString = (
            f"SELECT {shown} FROM (SELECT {self._alias}.* FROM {source} WHERE {where} "
            f"ORDER BY {order} LIMIT %s) {self._alias} {joined} ORDER BY {order}"
        )
        return statement, [*parameters, page.per_page + 1]

    def _order(self, page: Page, effective_at: LiteralString) -> LiteralString:
        direction: LiteralString = " DESC" if page.order.is_descending else ""
        by_id: LiteralString = self._alias + ".id" + direction
        if page.order.by == "effective_at":
            return effective_at + direction + ", " + by_id
        return by_id

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
                self.add(ids + " >= %s::uuid", first_id(at_us))
            if operator in ("lt", "lte", "eq"):
                self.add(ids + " < %s::uuid", first_id(at_us + 1))

    def _compare(
        self, sql: LiteralString, operator: LiteralString, operand: LiteralString, value: object
    ) -> None:
        """A filter's condition on one value, from its column or its own words."""
        if "%s" in sql:
            self.add(sql.replace("{op}", operator), *[value] * sql.count("%s"))
        else:
            self.add(f"{sql} {operator} {operand}", value)

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
