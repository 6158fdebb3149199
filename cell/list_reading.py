"""Reads the page of a list: in one statement, or where what matches may be far away, in two."""

from collections.abc import Sequence
from typing import Any, LiteralString

from cell.calls import Call
from cell.listing import Filters, Reading
from cell.pagination import Page


async def fetch_page(
    call: Call,
    filters: Filters,
    page: Page,
    *,
    shown: LiteralString,
    source: LiteralString,
    beside: LiteralString = "",
    joined: LiteralString = "",
    of_joined: Sequence[object] = (),
    effective_at: LiteralString = "",
    along: LiteralString = "",
    is_narrow: bool = False,
) -> list[tuple[Any, ...]]:
    """One row more than the page holds, of one snapshot; see `Filters.select`.

    `of_joined` are the parameters of `joined`. Of what `is_narrow`, little matches, and to look for
    it near the beginning of the list first would cost more than it saves.
    """

    async def fetch(reading: Reading) -> list[tuple[Any, ...]]:
        statement, parameters = filters.select(
            page,
            shown=shown,
            source=source,
            beside=beside,
            joined=joined,
            effective_at=effective_at,
            along=along,
            reading=reading,
        )
        by_match = reading is Reading.BY_MATCH
        read = call.fetch_by_match if by_match else call.fetch
        return await read(statement, [*parameters, *of_joined])

    if not filters.is_scattered(page):
        return await fetch(Reading.AS_PLANNED)
    rows = [] if is_narrow else await fetch(Reading.NEAR)
    return rows if len(rows) > page.per_page else await fetch(Reading.BY_MATCH)
