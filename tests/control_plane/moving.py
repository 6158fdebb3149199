"""Two cells with their sequencers and a catalog, for tests of moves within one process."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from cell_writing import Writing, all_of, own_tenant, transfer, write
from every_table import fill_tenant

from cell.batch import Applied
from cell.errors import NotApplied
from cell.ledger.model import TenantId
from cell.tables import TENANT_TABLES
from control_plane.catalog import Catalog
from control_plane.move.cell_heads import Cell, connect, read_head
from control_plane.move.hands import Hands
from control_plane.move.heads import Heading, HeadState, Side
from control_plane.move.plan import Move
from control_plane.move.register import MoveRecord, Register
from control_plane.move.steps import run_move
from control_plane.routing import CellName, Epoch
from control_plane.verify.report import Difference, VerificationReport

A, B = CellName("cell-a"), CellName("cell-b")


@dataclass
class Platform:
    """Two cells with their sequencers, a catalog, and a tenant with a neighbour at the first."""

    register: Register
    databases: dict[CellName, Any]
    writers: dict[CellName, Writing]
    movers: dict[CellName, Cell]
    tenant_id: TenantId
    accounts: list[str]
    wrong: list[str]
    """What the recomputation finds."""
    owned: int = 0
    """How often routers were told."""

    async def plan(
        self, source: CellName, target: CellName, epoch_old: int, new: int, **kind: Any
    ) -> Move:
        move = Move(
            move_id=uuid4(),
            tenant_id=UUID(self.tenant_id),
            source=source,
            target=target,
            epoch_old=Epoch(epoch_old),
            epoch_new=Epoch(new),
            max_pause_ms=60_000,
            **kind,
        )
        await self.register.plan(move, actor="test")
        return move

    async def hands(self, move: Move, **kind: Any) -> Hands:
        execute_now = "UPDATE moves SET lease_until = '-infinity'"
        async with self.register._catalog.transaction() as tx:
            await tx.execute(execute_now)
        term = await self.register.take_lease(move.move_id, uuid4())
        assert term is not None

        async def fold() -> VerificationReport:
            wrong = [Difference(check="balances", message=each) for each in self.wrong]
            return VerificationReport(
                tenant="acme",
                cell="cell",
                ok=not wrong,
                accounts=0,
                entries=0,
                transactions=0,
                segments=0,
                last_seq=0,
                differences=tuple(wrong),
                seconds=0.0,
            )

        async def on_owned() -> None:
            self.owned += 1

        return kind.pop("kind", Hands)(
            move=move,
            term=term,
            register=self.register,
            cells={Side.SOURCE: self.movers[move.source], Side.TARGET: self.movers[move.target]},
            fold=fold,
            on_owned=on_owned,
            **kind,
        )

    async def run(self, move: Move) -> MoveRecord:
        await run_move(await self.hands(move))
        return await self.register.read(move.move_id)

    async def head(self, cell: CellName) -> Any:
        return await read_head(self.movers[cell], UUID(self.tenant_id))

    def rows_at(self, cell: CellName) -> int:
        with psycopg.connect(self.databases[cell].superuser_dsn) as connection:
            counts = [
                connection.execute(
                    f"SELECT count(*) FROM {table} WHERE tenant_id = %s", (self.tenant_id,)
                ).fetchone()
                for table in TENANT_TABLES
            ]
        return sum(int(row[0]) for row in counts if row is not None)

    async def assert_rests_at(self, owner: CellName, epoch: int) -> None:
        """Nothing is left of the move, but a tombstone."""
        other = A if owner == B else B
        owned, moved = await self.head(owner), await self.head(other)
        assert owned.heading == Heading(HeadState.OWNED, Epoch(epoch), None)
        assert moved.heading == Heading(HeadState.MOVED, Epoch(epoch), None)
        assert moved.moved_to == owner
        assert self.rows_at(other) == 0
        cell, placed_epoch, _ = await self.register.seen(UUID(self.tenant_id))
        assert (cell, placed_epoch) == (owner, epoch)

    async def client(self, number: int, told: dict[str, int], is_over: asyncio.Event) -> None:
        """Sends each write until it is acknowledged, to whichever cell takes it."""
        for count in itertools.count():
            if is_over.is_set():
                return
            key = f"{number}-{count}"
            for cell in itertools.cycle(self.writers):
                (outcome,) = await all_of(
                    self.writers[cell].outcome(self.tenant_id, transfer(*self.accounts), key=key)
                )
                if isinstance(outcome, Applied):
                    told[key] = outcome.record.seq
                    break
                assert isinstance(outcome, NotApplied), outcome
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def open_platform(catalog: Catalog, cell_pair: tuple[Any, Any]) -> AsyncIterator[Platform]:
    one, two = cell_pair
    tenant_id, neighbour = own_tenant(one.writer_dsn), own_tenant(one.writer_dsn)
    async with (
        write(one.writer_dsn) as at_one,
        write(two.writer_dsn) as at_two,
        await connect(one.mover_dsn) as mover_one,
        await connect(two.mover_dsn) as mover_two,
    ):
        for each in (tenant_id, neighbour):
            await fill_tenant(at_one, each, one.superuser_dsn)
        accounts = await at_one.accounts(tenant_id, 2)
        async with catalog.transaction() as tx:
            await tx.execute(
                "INSERT INTO tenants (organization_id, slug, state, first_cell, attempt)"
                " VALUES (%s, 'acme', 'active', 'cell-a', %s)",
                (tenant_id, uuid4()),
            )
            await tx.execute(
                "INSERT INTO placements (organization_id, cell, epoch) VALUES (%s, 'cell-a', 1)",
                (tenant_id,),
            )
        yield Platform(
            register=Register(catalog),
            databases={A: one, B: two},
            writers={A: at_one, B: at_two},
            movers={A: mover_one, B: mover_two},
            tenant_id=tenant_id,
            accounts=accounts,
            wrong=[],
        )
