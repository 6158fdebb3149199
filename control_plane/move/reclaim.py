"""What becomes of the tenants of a cell whose database was restored from a backup.

The cell has quarantined them. Each is settled over all cells: the one it is placed on serves it
again, from what it has, at a new epoch, once its ledger has been recomputed and is right; then, and
only then, what other cells have left of it is deleted. A move that was open is closed: heads that
it had a hand on are settled with the tenant. Where another cell has more of the tenant than the one
it is placed on, it is left alone, unless an operator accepts the loss.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import psycopg
from msgspec.structs import replace

from control_plane.catalog import Catalog
from control_plane.errors import CellUnavailable, NotFound
from control_plane.move.cell_heads import Cell, change_head, connect, read_head
from control_plane.move.heads import Change, Head, Heading, HeadState, Side
from control_plane.move.plan import epoch_above
from control_plane.move.register import Register
from control_plane.move.rows import Importing, delete_rows
from control_plane.routing import CellName, Placement
from control_plane.routing_feed import RoutingFeed
from control_plane.verify.service import Verifications, nobody_has_gone
from control_plane.wire import ReclaimedTenant

# Also what an earlier attempt has left half done: a hand of no open move is on it.
LOOSE = """
SELECT tenant_id FROM tenant_heads WHERE state = 'quarantined' OR move_id IS NOT NULL
ORDER BY tenant_id
"""


SERVABLE = frozenset({HeadState.OWNED, HeadState.FENCED, HeadState.READY, HeadState.QUARANTINED})
"""Of the cell that it is placed on: all that was acknowledged there, or decided to be there."""


class Refused(Exception):
    """The tenant stays as it is; the words say why."""


class Reclaimer:
    """What the route needs."""

    def __init__(
        self,
        catalog: Catalog,
        feed: RoutingFeed,
        verifications: Verifications,
        mover_dsns: Mapping[CellName, str],
    ) -> None:
        self._catalog = catalog
        self._register = Register(catalog)
        self._feed = feed
        self._verifications = verifications
        self._dsns = mover_dsns

    async def reclaim(
        self, cell: str, *, accepts_loss: bool = False, actor: str
    ) -> list[ReclaimedTenant]:
        """One tenant after another; safe to repeat. Raises NotFound, CellUnavailable."""
        if cell not in self._dsns:
            raise NotFound(f"there is no cell {cell!r}", parameter="cell")
        told: list[ReclaimedTenant] = []
        try:
            async with AsyncExitStack() as opened:
                cells = {
                    name: await opened.enter_async_context(await connect(dsn))
                    for name, dsn in self._dsns.items()
                }
                rows = await (await cells[CellName(cell)].execute(LOOSE.encode())).fetchall()
                for (tenant,) in rows:
                    head = await read_head(cells[CellName(cell)], tenant)
                    assert head is not None, "heads are never deleted"
                    is_quarantined = head.heading.state is HeadState.QUARANTINED
                    # A move that is at work on its own heads is none of our business.
                    if is_quarantined or await self._register.open_move_of(tenant) is None:
                        told.append(await self._settle(cells, tenant, head, accepts_loss, actor))
        except psycopg.Error as exc:
            raise CellUnavailable(f"the databases of all cells are needed: {exc}") from exc
        await self._feed.refresh()
        return told

    async def _settle(
        self,
        cells: Mapping[CellName, Cell],
        tenant: UUID,
        found: Head,
        accepts_loss: bool,
        actor: str,
    ) -> ReclaimedTenant:
        slug = await self._catalog.slug_of(tenant)
        told = ReclaimedTenant(tenant=slug or str(tenant), last_seq=found.position.seq)
        try:
            if slug is None:
                raise Refused("the catalog does not know this tenant")
            await self._require_servable(cells, tenant, accepts_loss)
            # From here on nobody else works on its heads: whoever did has an older term.
            term = await self._register.close_open_move(tenant, actor=actor)
            placed_on, epoch = await self._serve_again(cells, tenant, slug, term)
            for name, cell in cells.items():
                if name != placed_on:
                    await _empty(cell, name, tenant, term, placed_on)
            return replace(told, placed_on=placed_on, epoch=epoch)
        except Refused as refusal:
            return replace(told, refused_because=str(refusal))

    async def _require_servable(
        self, cells: Mapping[CellName, Cell], tenant: UUID, accepts_loss: bool
    ) -> None:
        """Raises Refused where the cell that it is placed on has nothing, or less than another."""
        placed_on, _, _ = await self._register.seen(tenant)
        heads = {name: await read_head(cell, tenant) for name, cell in cells.items()}
        owner = heads.pop(placed_on, None)
        if owner is None or owner.heading.state not in SERVABLE:
            raise Refused(f"{placed_on}, which it is placed on, does not have it")
        for name, head in heads.items():
            if head is not None and head.position.seq > owner.position.seq and not accepts_loss:
                raise Refused(
                    f"{name} has it up to sequence {head.position.seq}, {placed_on}, which it is"
                    f" placed on, up to {owner.position.seq}: --accept-loss goes on with that"
                )

    async def _serve_again(
        self, cells: Mapping[CellName, Cell], tenant: UUID, slug: str, term: int
    ) -> tuple[CellName, int | None]:
        """The cell that it is placed on, and at which epoch that serves it again, if it did not."""
        placed_on, epoch, moved = await self._register.seen(tenant)
        head = await read_head(cells[placed_on], tenant)
        assert head is not None, "heads are never deleted"
        if head.heading == Heading(HeadState.OWNED, epoch, None):
            return placed_on, None
        report = await self._verifications.verify(slug, nobody_has_gone)
        if not report.ok:
            wrong = "; ".join(each.message for each in report.differences[:3])
            raise Refused(f"its ledger is wrong: {wrong}")
        others = [await read_head(cell, tenant) for cell in cells.values()]
        epochs = [other.heading.epoch for other in others if other is not None]
        wanted = Placement(placed_on, epoch_above([epoch, moved, *epochs]))
        # The placement first: until the head follows, nobody owns the tenant.
        async with self._catalog.transaction() as tx:
            await self._catalog.change_placement(
                tx, tenant, expected=Placement(placed_on, epoch), wanted=wanted
            )
        heading = Heading(HeadState.OWNED, wanted.epoch, None)
        await _change(cells[placed_on], tenant, head, heading, term)
        return placed_on, wanted.epoch


async def _empty(cell: Cell, name: CellName, tenant: UUID, term: int, placed_on: CellName) -> None:
    """A tombstone, and no rows: as the end of a move that nobody remembers."""
    head = await read_head(cell, tenant)
    if head is None or head.heading == Heading(HeadState.MOVED, head.heading.epoch, None):
        return
    if head.heading.state is HeadState.OWNED:
        raise Refused(f"{name} owns it as well, and was not restored: a person has to look")
    hand = Heading(HeadState.MOVED, head.heading.epoch, uuid4())
    head = await _change(cell, tenant, head, hand, term, moved_to=placed_on)
    job = Importing(tenant_id=tenant, heading=hand, term=term)
    await delete_rows(cell, job, head.position)
    gone = hand._replace(move_id=None)
    emptied = await read_head(cell, tenant)
    assert emptied is not None, "heads are never deleted"
    await _change(cell, tenant, emptied, gone, term, moved_to=placed_on, is_emptied=True)


async def _change(
    cell: Cell,
    tenant: UUID,
    head: Head,
    wanted: Heading,
    term: int,
    *,
    moved_to: str | None = None,
    is_emptied: bool = False,
) -> Head:
    """The head afterwards. Raises Refused where somebody else has changed it."""
    change = Change(
        name="reclaim",
        side=Side.SOURCE,
        expected=head.heading,
        wanted=wanted,
        moved_to=moved_to,
        is_emptied=is_emptied,
    )
    after = await change_head(cell, tenant, change, term)
    if after is None:
        raise Refused("its head was changed meanwhile: try again")
    return after
