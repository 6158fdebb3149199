"""Method: pages and cursors from query strings; every cursor read back, then altered and moved."""

import uuid
from urllib.parse import quote, urlencode

import pytest

from cell.errors import ApiError, InvalidRequest, Unprocessable
from cell.ledger.model import TenantId
from cell.pagination import Page, Position, parse_page, render_cursor
from cell.query import Query

TENANT = TenantId("00000000-0000-7000-8000-000000000001")
ID = "0194f7f3-0000-7000-8000-00000000000a"


def page_of(*pairs: tuple[str, str], tenant: str = TENANT, listing: str = "things") -> Page:
    return parse_page(
        Query(urlencode(pairs).encode()), TenantId(tenant), listing, ("created_at", "effective_at")
    )


@pytest.mark.parametrize(
    ("text", "per_page"),
    [("1", 1), ("25", 25), ("100", 100), ("101", 100), ("1000000000", 100), ("9" * 999, 100)],
)
def test_page_sizes(text: str, per_page: int) -> None:
    assert page_of(("per_page", text)).per_page == per_page


def test_default_page() -> None:
    assert page_of() == Page(tenant_id=TENANT, listing="things", per_page=25)


@pytest.mark.parametrize("text", ["0", "000", "-1", "1.5", "1e9", "", "x", "\u0665"])
def test_refused_page_sizes(text: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        page_of(("per_page", text))
    assert refused.value.parameter == "per_page"


@pytest.mark.parametrize(
    "pairs",
    [
        [("order_by[name]", "asc")],
        [("order_by[created_at]", "up")],
        [("order_by[created_at]", "asc"), ("order_by[effective_at]", "asc")],
        [("order_by", "created_at")],
    ],
)
def test_refused_orders(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(Unprocessable) as refused:
        page_of(*pairs)
    assert refused.value.parameter == "order_by"


@pytest.mark.parametrize("by", ["created_at", "effective_at"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("key", [0, -1, -(2**63), 2**63 - 1])
def test_cursors_read_back(by: str, direction: str, key: int) -> None:
    ordering = (f"order_by[{by}]", direction)
    page = page_of(ordering)
    position = Position(key=key, id=str(uuid.uuid4()))
    cursor = render_cursor(position, page).decode()
    assert quote(cursor, safe="") in (cursor, cursor.replace("=", "%3D"))
    assert page_of(ordering, ("after_cursor", cursor)).after == position


def test_empty_cursor_is_the_first_page() -> None:
    assert page_of(("after_cursor", "")).after is None


def test_cursors_belong_to_tenant_listing_and_order() -> None:
    cursor = render_cursor(Position(key=0, id=ID), page_of()).decode()
    after = ("after_cursor", cursor)
    assert page_of(after).after is not None
    for elsewhere in (
        lambda: page_of(after, tenant=ID),
        lambda: page_of(after, listing="others"),
        lambda: page_of(after, ("order_by[effective_at]", "desc")),
        lambda: page_of(after, ("order_by[created_at]", "asc")),
    ):
        with pytest.raises(InvalidRequest):
            elsewhere()


def test_tampered_cursors() -> None:
    cursor = render_cursor(Position(key=0, id=ID), page_of()).decode()
    altered = [cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in range(40)]
    for text in (*altered, "x", "é", cursor + "AAAA", cursor[:-4], "=" * 40, "A" * 5000, ID):
        with pytest.raises(ApiError) as refused:
            page_of(("after_cursor", text))
        assert refused.value.status == 400
        assert refused.value.parameter == "after_cursor"
