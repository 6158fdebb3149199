"""Listings: the filters and the page of a request to one SELECT (pure).

SQL is put together from constants of this package and placeholders only; whatever the caller sent
is a parameter. A resource names its filters one line each; see `cell/resources/`.
"""

from collections.abc import Callable, Mapping
from typing import Final, LiteralString

import msgspec

from cell.errors import Unprocessable
from cell.pagination import Page
from cell.query import Query
from cell.timestamps import DAY_US, parse_date, parse_timestamp
from cell.wellformed import METADATA_KEYS_MAX

_OPERATORS: Final[Mapping[str, LiteralString]] = {
    "gt": " > ",
    "gte": " >= ",
    "lt": " < ",
    "lte": " <= ",
    "eq": " = ",
}
_BALANCE_OPERATORS: Final[Mapping[str, LiteralString]] = {**_OPERATORS, "not_eq": " <> "}

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

    def equal(self, name: str, column: LiteralString) -> None:
        """`name=text`."""
        value = self.query.text(name)
        if value is not None:
            self.add(column + " = %s", value)

    def equal_id(self, name: str, column: LiteralString) -> None:
        value = self.query.uuid(name)
        if value is not None:
            self.add(column + " = %s", value)

    def one_of(self, name: str, column: LiteralString) -> None:
        """`name[]=…` or `name=…`: any of several texts."""
        values = self.query.texts(name)
        if values:
            self.add(column + " = ANY(%s::text[])", values)

    def ids(self, column: LiteralString) -> None:
        """`id[]=…`."""
        values = self.query.uuids("id")
        if values:
            self.add(column + " = ANY(%s::uuid[])", values)

    def choice(self, name: str, column: LiteralString, choices: type) -> None:
        value = self.query.choice(name, choices)
        if value is not None:
            self.add(column + " = %s", value)

    def statuses(self, column: LiteralString, choices: type) -> None:
        """`status=…` or `status[]=…`."""
        values = self.query.choices("status", choices)
        if values:
            self.add(column + " = ANY(%s::transaction_status[])", values)

    def metadata(self, column: LiteralString) -> None:
        """`metadata[key]=value`: every pair, exactly."""
        wanted = self.query.mapping("metadata")
        if len(wanted) > METADATA_KEYS_MAX:
            raise Unprocessable(f"metadata takes at most {METADATA_KEYS_MAX} keys", "metadata")
        if wanted:
            self.add(column + " @> %s::jsonb", msgspec.json.encode(wanted).decode())

    def times(self, name: str, column: LiteralString) -> None:
        """`name[gte]=timestamp`, with gt, gte, lt, lte, eq."""
        self._range(name, column, _OPERATORS, parse_timestamp, "%s::bigint")

    def integers(self, name: str, column: LiteralString) -> None:
        self._range(name, column, _OPERATORS, _parse_integer, "%s::numeric")

    def balances(self, name: str, expression: LiteralString) -> None:
        """As `integers`, and not_eq."""
        self._range(name, expression, _BALANCE_OPERATORS, _parse_integer, "%s::numeric")

    def dates(self, name: str, column: LiteralString) -> None:
        """`name[gte]=date`: compared with the UTC day of the column."""
        for operator, bounds in self.date_bounds(name):
            self.add(column + operator + "%s::bigint", bounds)

    def date_bounds(self, name: str) -> list[tuple[LiteralString, int]]:
        """Conditions on days as conditions on times; a day is [midnight, next midnight)."""
        found: list[tuple[LiteralString, int]] = []
        for operator, text in self._operands(name, _OPERATORS):
            # A caller's datetime arrives as a full timestamp; its day is meant.
            start = parse_date(text[:10], name)
            if operator in ("gt", "lte"):
                found.append((" >= " if operator == "gt" else " < ", start + DAY_US))
            elif operator in ("gte", "lt"):
                found.append((" >= " if operator == "gte" else " < ", start))
            else:
                found += [(" >= ", start), (" < ", start + DAY_US)]
        return found

    def having(self, name: str, expression: LiteralString) -> tuple[LiteralString, list[object]]:
        """The conditions of an amount range on an aggregate, for a HAVING clause; may be empty."""
        parts: list[LiteralString] = []
        parameters: list[object] = []
        for operator, text in self._operands(name, _OPERATORS):
            parts.append(expression + _OPERATORS[operator] + "%s::numeric")
            parameters.append(_parse_integer(text, name))
        return " AND ".join(parts), parameters

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
        column: LiteralString,
        operators: Mapping[str, LiteralString],
        parse: Callable[[str, str], int],
        placeholder: LiteralString,
    ) -> None:
        for operator, text in self._operands(name, operators):
            self.add(column + operators[operator] + placeholder, parse(text, name))

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
