"""Pages: how many rows, in which order, after which one; and the cursor that says where to go on.

Keyset pagination: a page begins after the sort key and id of the last row of the one before, so
that rows written meanwhile neither shift it nor make it slower. A cursor is opaque to clients; a
checksum over it, the tenant and the listing tells one that was altered or belongs elsewhere, which
is a mistake, not an attack: whatever a cursor says, a tenant sees its own rows only.
"""

import base64
import binascii
import hashlib
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from cell.answers import Answer, render
from cell.errors import InvalidRequest, Unprocessable
from cell.ledger.model import TenantId
from cell.parameters import Kind, Parameter
from cell.query import Query

PER_PAGE_DEFAULT: Final = 25
PER_PAGE_MAX: Final = 100
PER_PAGE_HEADER: Final = b"x-per-page"
CURSOR_HEADER: Final = b"x-after-cursor"

PAGING: Final = (Parameter("per_page", Kind.COUNT), Parameter("after_cursor", Kind.TEXT))
"""What every list takes."""


def order_by(orders: tuple[str, ...]) -> Parameter:
    """What a list takes that can be ordered by those columns."""
    return Parameter("order_by", Kind.ORDER, choices=orders)


Row = TypeVar("Row")

_CHECKSUM_BYTES: Final = 6
_KEY: Final = struct.Struct(">q16s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of a listing."""

    by: str = "created_at"
    """`effective_at`, or `created_at`, which is the order of ids: they are drawn in time order."""
    is_descending: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last row of a page."""

    key: int
    """Its effective_at in microseconds, or 0 where the order is that of ids."""
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one request asks of a listing."""

    tenant_id: TenantId
    listing: str
    """Name of the listing: a cursor of one is none of another."""
    per_page: int
    order: Order = Order()
    after: Position | None = None


def parse_page(query: Query, tenant_id: TenantId, listing: str, orders: tuple[str, ...]) -> Page:
    """The page asked for; `orders` are the columns which `order_by` may name."""
    first = Page(
        tenant_id=tenant_id,
        listing=listing,
        per_page=_parse_per_page(query),
        order=_parse_order(query, orders),
    )
    cursor = query.text("after_cursor")
    return replace(first, after=_parse_cursor(cursor, first)) if cursor else first


def _parse_per_page(query: Query) -> int:
    text = query.text("per_page")
    if text is None:
        return PER_PAGE_DEFAULT
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise Unprocessable("per_page is a whole number above 0", "per_page")
    # Compared by length first: a number of a million digits is over the maximum, not an integer.
    return PER_PAGE_MAX if len(text.lstrip("0")) > 3 else min(int(text), PER_PAGE_MAX)


def _parse_order(query: Query, orders: tuple[str, ...]) -> Order:
    asked = query.mapping("order_by")
    if not asked or not orders:
        return Order()
    if len(asked) > 1:
        raise Unprocessable("order_by takes one field", "order_by")
    ((by, direction),) = asked.items()
    if by not in orders:
        raise Unprocessable(f"order_by takes {' or '.join(orders)}, not {by!r}", "order_by")
    if direction not in ("asc", "desc"):
        raise Unprocessable(f"order_by[{by}] is asc or desc, not {direction!r}", "order_by")
    return Order(by=by, is_descending=direction == "desc")


def answer_page(
    page: Page,
    rows: Sequence[Row],
    show: Callable[[Row], object],
    position: Callable[[Row], Position],
) -> Answer:
    """The page as a bare array; `rows` hold one more than the page if there is another one.

    The cursor is absent on the last page: a client would go on for ever.
    """
    shown = rows[: page.per_page]
    headers = [(PER_PAGE_HEADER, b"%d" % page.per_page)]
    if len(rows) > page.per_page:
        headers.append((CURSOR_HEADER, render_cursor(position(shown[-1]), page)))
    return Answer(200, render([show(row) for row in shown]), tuple(headers))


def render_cursor(position: Position, page: Page) -> bytes:
    """The cursor that continues this listing, in this order, after the row at `position`."""
    payload = _KEY.pack(position.key, uuid.UUID(position.id).bytes)
    return base64.urlsafe_b64encode(_checksum(payload, page) + payload)


def _parse_cursor(text: str, page: Page) -> Position:
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        checksum, payload = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
        key, id_bytes = _KEY.unpack(payload)
    except (binascii.Error, UnicodeEncodeError, struct.error) as exc:
        raise _unknown_cursor() from exc
    if checksum != _checksum(payload, page):
        raise _unknown_cursor()
    return Position(key=key, id=str(uuid.UUID(bytes=id_bytes)))


def _unknown_cursor() -> InvalidRequest:
    return InvalidRequest("after_cursor is no cursor of this listing", parameter="after_cursor")


def _checksum(payload: bytes, page: Page) -> bytes:
    order = page.order
    place = f"{page.tenant_id} {page.listing} {order.by} {order.is_descending} "
    return hashlib.blake2b(place.encode() + payload, digest_size=_CHECKSUM_BYTES).digest()
