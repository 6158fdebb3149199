"""Reconciles tenants at any time, and each of them once a day.

Three questions: do the catalog and all cells agree who owns the tenant; is its ledger what its
journal says, by a second path; and, while a move can be rolled back, are the rows of both cells the
same at one sequence.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from cell.tables import COMPARED_TABLES
from control_plane.catalog import Catalog, TenantState
from control_plane.errors import CellUnavailable, ControlPlaneError, TenantProvisioning
from control_plane.move.cell_heads import connect, read_head
from control_plane.move.ownership import Presence, ownership_problems
from control_plane.move.register import MoveRecord, Register
from control_plane.routing import CellName, Placement
from control_plane.verify.errors import VerificationStopped
from control_plane.verify.service import Verifications, nobody_has_gone
from control_plane.wire import CAN_BE_ROLLED_BACK, Reconciliation

EVERY_S = 86_400
LOOK_S = 60.0
"""Between two looks for a tenant whose turn it is."""
COMPARE_S_MAX = 600.0
POLL_S = 0.2

log = logging.getLogger(__name__)


class Reconciler:
    """What the route needs; `run` in a task of its own."""

    def __init__(
        self,
        catalog: Catalog,
        verifications: Verifications,
        mover_dsns: Mapping[CellName, str],
    ) -> None:
        self._catalog = catalog
        self._register = Register(catalog)
        self._verifications = verifications
        self._dsns = mover_dsns

    async def reconcile(
        self, slug: str, is_caller_gone: Callable[[], Awaitable[bool]]
    ) -> Reconciliation:
        """Raises NotFound, TenantProvisioning, VerificationBusy, CellUnavailable,
        VerificationStopped."""
        tenant = await self._catalog.tenant(slug)
        if tenant.state is not TenantState.ACTIVE or tenant.cell is None or tenant.epoch is None:
            raise TenantProvisioning(f"tenant {slug!r} is not placed yet", parameter="tenant")
        tenant_id = tenant.organization_id
        report = await self._verifications.verify(slug, is_caller_gone)
        problems = [f"{each.check}: {each.message}" for each in report.differences]
        last = await self._register.open_move_of(tenant_id)
        has_shadow = last is not None and last.phase == CAN_BE_ROLLED_BACK
        if last is not None and has_shadow:
            problems += await self._shadow_problems(last)
        problems += await self._ownership_problems(tenant_id)
        await self._store(tenant_id, problems)
        return Reconciliation(
            tenant=slug,
            cell=tenant.cell,
            ok=not problems,
            last_seq=report.last_seq,
            shadow=last.move.source if last is not None and has_shadow else None,
            problems=problems,
        )

    async def _ownership_problems(self, tenant_id: UUID) -> list[str]:
        """Read between two equal readings of the catalog: a move may be at work."""
        while True:
            before = await self._decided(tenant_id)
            found = {cell: await self._presence(cell, tenant_id) for cell in self._dsns}
            if await self._decided(tenant_id) == before:
                placement, last = before
                return ownership_problems(placement, None if last is None else last.move, found)

    async def _decided(self, tenant_id: UUID) -> tuple[Placement, MoveRecord | None]:
        cell, epoch, _ = await self._register.seen(tenant_id)
        return Placement(cell, epoch), await self._register.open_move_of(tenant_id)

    async def _presence(self, cell: CellName, tenant_id: UUID) -> Presence:
        has_rows = sql.SQL(" OR ").join(
            sql.SQL("EXISTS (SELECT FROM {} WHERE tenant_id = %(tenant)s)").format(
                sql.Identifier(table)
            )
            for table in COMPARED_TABLES
        )
        try:
            async with await connect(self._dsns[cell]) as connection:
                head = await read_head(connection, tenant_id)
                cursor = await connection.execute(
                    sql.SQL("SELECT {}").format(has_rows), {"tenant": tenant_id}
                )
                row = await cursor.fetchone()
        except psycopg.Error as exc:
            raise CellUnavailable(f"the database of {cell} cannot be asked: {exc}") from exc
        return Presence(head=head, has_rows=bool(row and row[0]))

    async def _shadow_problems(self, last: MoveRecord) -> list[str]:
        """Have the move's next visit compare, and wait for it."""
        await self._register.ask_compare(last.move.move_id)
        deadline_s = time.monotonic() + COMPARE_S_MAX
        while True:
            record = await self._register.read(last.move.move_id)
            if record.phase != CAN_BE_ROLLED_BACK and record.finished_at is not None:
                return []
            if "shadow_compared_at_s" in record.progress:
                rows: list[str] = record.progress["shadow_differences"]
                return [f"shadow on {last.move.source}: {row}" for row in rows]
            if time.monotonic() > deadline_s:
                waits = record.progress.get("last_error", "no mover came to it")
                raise VerificationStopped(
                    f"the shadow on {last.move.source} was not compared within"
                    f" {COMPARE_S_MAX:.0f} s: {waits}"
                )
            await asyncio.sleep(POLL_S)

    STORE: LiteralString = """
    INSERT INTO reconciliations (organization_id, problems) VALUES (%s, %s)
    ON CONFLICT (organization_id) DO UPDATE
    SET reconciled_at = now(), problems = excluded.problems
    """

    async def _store(self, tenant_id: UUID, problems: list[str]) -> None:
        async with self._catalog.transaction() as tx:
            await tx.execute(self.STORE, (tenant_id, Jsonb(problems[:100])))

    DUE: LiteralString = """
    SELECT slug FROM tenants t LEFT JOIN reconciliations r USING (organization_id)
    WHERE state = 'active'
        AND coalesce(r.reconciled_at, t.created_at) < now() - make_interval(secs => %s)
    ORDER BY coalesce(r.reconciled_at, t.created_at) LIMIT 1
    """

    async def run(self) -> None:
        """Reconcile each tenant every EVERY_S, until cancelled."""
        while True:
            try:
                while (slug := await self._due()) is not None:
                    await self._reconcile_in_turn(slug)
            except ControlPlaneError as exc:
                log.warning("reconciliation put off", extra={"reason": str(exc)})
            await asyncio.sleep(LOOK_S)

    async def _due(self) -> str | None:
        async with self._catalog.transaction() as tx:
            row = await (await tx.execute(self.DUE, (EVERY_S,))).fetchone()
        return None if row is None else str(row["slug"])

    async def _reconcile_in_turn(self, slug: str) -> None:
        try:
            found = await self.reconcile(slug, nobody_has_gone)
        except ControlPlaneError as exc:
            # Noted, or it would be the first again, and no other tenant would ever be looked at.
            reason = f"not reconciled: {exc}"
            log.error("tenant not reconciled", extra={"tenant": slug, "reason": reason})
            tenant = await self._catalog.tenant(slug)
            await self._store(tenant.organization_id, [reason])
            return
        if not found.ok:
            log.error("tenant differs", extra={"tenant": slug, "problems": found.problems[:20]})
