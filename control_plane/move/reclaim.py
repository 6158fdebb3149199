"""What becomes of the tenants of a cell whose database was restored from a backup.

The cell has quarantined them. One that is placed there is served again, from what the backup has,
at a new epoch, once its ledger has been recomputed and is right; what was written after the backup
is lost, which only a person can accept. One that is placed elsewhere gets its tombstone, and its
rows are deleted. Whatever a move is still at work on is left alone.
"""

from collections.abc import Mapping
from uuid import UUID, uuid4

import psycopg

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

QUARANTINED = "SELECT tenant_id FROM tenant_heads WHERE state = 'quarantined' ORDER BY tenant_id"


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

    async def reclaim(self, cell: str, *, actor: str) -> list[ReclaimedTenant]:
        """One after another; safe to repeat. Raises NotFound, CellUnavailable."""
        dsn = self._dsns.get(CellName(cell))
        if dsn is None:
            raise NotFound(f"there is no cell {cell!r}", parameter="cell")
        try:
            async with await connect(dsn) as connection:
                rows = await (await connection.execute(QUARANTINED.encode())).fetchall()
                told = [await self._reclaim(connection, CellName(cell), row[0]) for row in rows]
        except psycopg.Error as exc:
            raise CellUnavailable(f"the database of {cell} cannot be asked: {exc}") from exc
        await self._feed.refresh()
        return told

    async def _reclaim(self, connection: Cell, cell: CellName, tenant: UUID) -> ReclaimedTenant:
        head = await read_head(connection, tenant)
        slug = await self._catalog.slug_of(tenant)
        assert head is not None, "heads are never deleted"
        if slug is None:
            return _told(str(tenant), head, refused="the catalog does not know this tenant")
        if await self._register.open_move_of(tenant) is not None:
            return _told(slug, head, refused="a move of it is open: look at `cloister moves list`")
        placed_on, epoch, moved = await self._register.seen(tenant)
        if placed_on != cell:
            await _empty(connection, tenant, head, placed_on)
            return _told(slug, head, placed_on=placed_on)
        report = await self._verifications.verify(slug, nobody_has_gone)
        if not report.ok:
            wrong = "; ".join(each.message for each in report.differences[:3])
            return _told(slug, head, refused=f"its ledger is wrong: {wrong}")
        # The placement first: until the head follows, nobody owns the tenant.
        wanted = Placement(cell, epoch_above([epoch, moved, head.heading.epoch]))
        async with self._catalog.transaction() as tx:
            await self._catalog.change_placement(
                tx, tenant, expected=Placement(cell, epoch), wanted=wanted
            )
        heading = Heading(HeadState.OWNED, wanted.epoch, None)
        await _change(connection, tenant, head, heading)
        return _told(slug, head, placed_on=cell, epoch=wanted.epoch)


async def _empty(connection: Cell, tenant: UUID, head: Head, placed_on: CellName) -> None:
    """A tombstone, and no rows: as the end of a move that nobody remembers."""
    hand = Heading(HeadState.MOVED, head.heading.epoch, uuid4())
    head = await _change(connection, tenant, head, hand, moved_to=placed_on)
    job = Importing(tenant_id=tenant, heading=hand, term=head.term)
    await delete_rows(connection, job, head.position)
    gone = hand._replace(move_id=None)
    await _change(connection, tenant, head, gone, moved_to=placed_on, is_emptied=True)


async def _change(
    connection: Cell,
    tenant: UUID,
    head: Head,
    wanted: Heading,
    *,
    moved_to: str | None = None,
    is_emptied: bool = False,
) -> Head:
    """The head afterwards. Raises CellUnavailable where somebody else has changed it."""
    change = Change(
        name="reclaim",
        side=Side.SOURCE,
        expected=head.heading,
        wanted=wanted,
        moved_to=moved_to,
        is_emptied=is_emptied,
    )
    after = await change_head(connection, tenant, change, head.term)
    if after is None:
        raise CellUnavailable(f"the head of tenant {tenant} was changed meanwhile: try again")
    return after


def _told(
    tenant: str,
    head: Head,
    *,
    placed_on: str | None = None,
    epoch: int | None = None,
    refused: str | None = None,
) -> ReclaimedTenant:
    return ReclaimedTenant(
        tenant=tenant,
        last_seq=head.position.seq,
        placed_on=placed_on,
        epoch=epoch,
        refused_because=refused,
    )
