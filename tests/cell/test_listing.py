"""Method: what filters and pages make of a query string, as the text of a statement and its
parameters; that Postgres understands them is proved with the resources.
"""

from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest

from cell.errors import Unprocessable
from cell.ids import first_id
from cell.ledger.model import TenantId
from cell.listing import NEAR_ROWS, Filters, Reading
from cell.pagination import Order, Page, Position
from cell.parameters import Filter, Kind
from cell.query import Query

TENANT = TenantId("00000000-0000-7000-8000-000000000001")
ID = "0194f7f3-0000-7000-8000-00000000000a"


def filters(*pairs: tuple[str, str]) -> Filters:
    return Filters(Query(urlencode(pairs).encode()), "t", TENANT)


def statement(of: Filters, page: Page | None = None) -> tuple[str, list[object]]:
    page = page or Page(tenant_id=TENANT, listing="things", per_page=25)
    text, parameters = of.select(
        page, shown="t.x", source="things t", effective_at="t.effective_at_us"
    )
    before = "SELECT t.x FROM (SELECT t.* FROM things t WHERE t.tenant_id = %s"
    inner, _, outer = text.removeprefix(before).partition(") t  ORDER BY ")
    assert outer
    assert f" ORDER BY {outer} LIMIT %s" in inner
    return inner, parameters[1:]


def test_without_filters() -> None:
    assert statement(filters()) == (" ORDER BY t.id DESC LIMIT %s", [26])


def test_operators() -> None:
    built = filters(("amount[gte]", "-5"), ("amount[lt]", "9" * 40))
    built.apply([Filter("amount", Kind.INTEGERS, "t.amount")])
    text, parameters = statement(built)
    assert text.startswith(" AND t.amount >= %s::numeric AND t.amount < %s::numeric ORDER")
    assert parameters[:2] == [-5, int("9" * 40)]


def test_python_datetimes() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    built = filters(("created_at[gt]", str(moment)), ("created_at[lte]", "2024-01-02"))
    built.apply([Filter("created_at", Kind.TIMES, "t.created_at_us")])
    assert statement(built)[1][:2] == [1_704_164_645_678_901, 1_704_153_600_000_000]


@pytest.mark.parametrize(
    ("operator", "conditions", "days"),
    [
        ("gt", " AND t.at >= %s::bigint", [1]),
        ("gte", " AND t.at >= %s::bigint", [0]),
        ("lt", " AND t.at < %s::bigint", [0]),
        ("lte", " AND t.at < %s::bigint", [1]),
        ("eq", " AND t.at >= %s::bigint AND t.at < %s::bigint", [0, 1]),
    ],
)
def test_days(operator: str, conditions: str, days: list[int]) -> None:
    built = filters((f"effective_date[{operator}]", "2024-01-02 12:00:00"))
    built.apply([Filter("effective_date", Kind.DAYS, "t.at")])
    text, parameters = statement(built)
    assert text.startswith(conditions + " ORDER")
    midnight, day = 1_704_153_600_000_000, 86_400_000_000
    assert parameters[:-1] == [midnight + day * n for n in days]


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2024-01-02", 0),
        ("2024-01-02T23:59:59.999999Z", 0),
        ("2024-01-02 03:04:05.678901+00:00", 0),
        # The day in UTC, as `balances[as_of_date]` takes it.
        ("2024-01-02T23:00:00-05:00", 1),
        ("2024-01-02T00:30:00+01:00", -1),
    ],
)
def test_the_day_of_a_time(text: str, day: int) -> None:
    built = filters(("effective_date[gte]", text))
    built.apply([Filter("effective_date", Kind.DAYS, "t.at")])
    assert statement(built)[1][0] == 1_704_153_600_000_000 + 86_400_000_000 * day


@pytest.mark.parametrize(
    ("pairs", "parameter"),
    [
        ([("amount", "5")], "amount"),
        ([("amount[between]", "5")], "amount"),
        ([("amount[not_eq]", "5")], "amount"),
        ([("amount[gt]", "5.0")], "amount"),
        ([("amount[gt]", "1_000")], "amount"),
        ([("amount[gt]", "\u0665")], "amount"),
        ([("amount[gt]", "9" * 61)], "amount"),
        ([("at[gt]", "yesterday")], "at"),
        ([("day[gt]", "yesterday")], "day"),
        ([("day[gte]", "2024-01-02garbage")], "day"),
        ([("day[gte]", "2024-01-02T")], "day"),
        ([("day[gte]", "2024-01-02T25:00:00Z")], "day"),
    ],
)
def test_refused_operands(pairs: list[tuple[str, str]], parameter: str) -> None:
    built = filters(*pairs)
    with pytest.raises(Unprocessable) as refused:
        built.apply([Filter("amount", Kind.INTEGERS, "t.amount")])
        built.apply([Filter("at", Kind.TIMES, "t.at"), Filter("day", Kind.DAYS, "t.at")])
    assert refused.value.parameter == parameter


@pytest.mark.parametrize(
    ("order", "after", "text", "parameters"),
    [
        (Order(), None, " ORDER BY t.id DESC", []),
        (Order(), 0, " AND t.id < %s::uuid ORDER BY t.id DESC", [ID]),
        (Order(is_descending=False), 0, " AND t.id > %s::uuid ORDER BY t.id", [ID]),
        (
            Order(by="effective_at"),
            7,
            " AND (t.effective_at_us, t.id) < (%s::bigint, %s::uuid)"
            " ORDER BY t.effective_at_us DESC, t.id DESC",
            [7, ID],
        ),
        (
            Order(by="effective_at", is_descending=False),
            None,
            " ORDER BY t.effective_at_us, t.id",
            [],
        ),
    ],
)
def test_pages_as_statements(
    order: Order, after: int | None, text: str, parameters: list[object]
) -> None:
    position = None if after is None else Position(key=after, id=ID)
    page = Page(tenant_id=TENANT, listing="things", per_page=10, order=order, after=position)
    assert statement(filters(), page) == (text + " LIMIT %s", [*parameters, 11])


@pytest.mark.parametrize("operator", ["gt", "gte", "eq", "lt", "lte"])
@pytest.mark.parametrize("name", ["created_at", "updated_at"])
def test_bounds_of_times_are_bounds_of_ids(name: str, operator: str) -> None:
    """Ids are of the time of creation; whatever happened to a row, it happened since."""
    built = filters((f"{name}[{operator}]", "2024-01-02T03:04:05.678901Z"))
    built.apply(
        [
            Filter("created_at", Kind.TIMES, "t.created_at_us", ids="t.id"),
            Filter("updated_at", Kind.TIMES, "t.updated_at_us", since_creation="t.id"),
        ]
    )
    text, parameters = statement(built)
    is_lower = name == "created_at" and operator in ("gt", "gte", "eq")
    is_upper = operator in ("lt", "lte", "eq")
    assert (" AND t.id >= %s::uuid" in text) is is_lower
    assert (" AND t.id < %s::uuid" in text) is is_upper
    at_us = 1_704_164_645_678_901
    assert (first_id(at_us) in parameters) is is_lower
    assert (first_id(at_us + 1) in parameters) is is_upper


BY_DATE = Order(by="effective_at")
FAR = Filter("metadata", Kind.METADATA, "t.metadata", in_order_of=())
DATED = Filter("dated", Kind.TIMES, "t.effective_at_us", in_order_of=("effective_at",))
OF_LEDGER = Filter("ledger_id", Kind.ID, "t.ledger_id")
WALKED = Filter("amount", Kind.INTEGERS, "t.amount", in_order_of=None)


@pytest.mark.parametrize(
    ("declared", "order", "is_scattered"),
    [
        (FAR, Order(), True),
        (FAR, BY_DATE, True),
        (DATED, Order(), True),
        (DATED, BY_DATE, False),
        (OF_LEDGER, Order(), False),
        (OF_LEDGER, BY_DATE, True),
        # Without an index, there is nothing to look it up in.
        (WALKED, Order(), False),
        (WALKED, BY_DATE, False),
    ],
)
def test_what_may_be_far_away(declared: Filter, order: Order, is_scattered: bool) -> None:
    built = filters(
        ("metadata[k]", "v"),
        ("dated[lt]", "2024-01-01"),
        ("ledger_id", ID),
        ("amount[gt]", "5"),
    )
    page = Page(tenant_id=TENANT, listing="things", per_page=10, order=order)
    assert not built.is_scattered(page)
    built.apply([declared])
    assert built.is_scattered(page) is is_scattered


def test_a_walk_is_bounded_and_what_matches_is_looked_up_as_a_whole() -> None:
    built = filters(("metadata[k]", "v"), ("ledger_id", ID), ("amount[gt]", "5"))
    built.apply([OF_LEDGER, FAR, WALKED])
    page = Page(tenant_id=TENANT, listing="things", per_page=10)
    near, of_near = built.select(page, shown="t.x", source="things t", reading=Reading.NEAR)
    assert near == (
        "SELECT t.x FROM (SELECT t.* FROM (SELECT t.* FROM things t"
        " WHERE t.tenant_id = %s AND t.ledger_id = %s"
        " ORDER BY t.id DESC LIMIT %s) t"
        "  WHERE t.metadata @> %s::jsonb AND t.amount > %s::numeric"
        " ORDER BY t.id DESC LIMIT %s) t  ORDER BY t.id DESC"
    )
    assert of_near == [TENANT, ID, NEAR_ROWS, '{"k":"v"}', 5, 11]
    by_match, of_match = built.select(
        page, shown="t.x", source="things t", reading=Reading.BY_MATCH
    )
    assert by_match == (
        "SELECT t.x FROM (SELECT t.* FROM (SELECT t.* FROM things t"
        " WHERE t.tenant_id = %s AND t.ledger_id = %s"
        " AND t.metadata @> %s::jsonb AND t.amount > %s::numeric OFFSET 0) t"
        " ORDER BY t.id DESC LIMIT %s) t  ORDER BY t.id DESC"
    )
    assert of_match == [TENANT, ID, '{"k":"v"}', 5, 11]
