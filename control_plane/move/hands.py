"""What a mover works with: the two cells as far as they answer, the catalog, and what it has seen.

A cell that does not answer is lost for the rest of the attempt: whoever is next connects anew.
What hangs is not waited for, not even until it has heard that it is not wanted any more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg

from control_plane.move.cell_heads import Cell, read_head
from control_plane.move.fail_points import NO_FAIL_POINTS
from control_plane.move.heads import OUT_OF_REACH, Head, Seen, Side
from control_plane.move.plan import Decision, Move
from control_plane.move.register import Register
from control_plane.move.rows import Importing
from control_plane.routing import CellName
from control_plane.verify.report import VerificationReport

HEAD_S_MAX = 5.0
"""To read or change a head, outside of the pause, before the cell is taken for lost."""

T = TypeVar("T")


class MoveStopped(Exception):
    """This mover cannot go on now; another attempt may."""


class MoveIllegal(Exception):
    """Catalog and cells contradict each other: a person has to look."""


class CellSilent(MoveStopped):
    """A cell does not answer, or not in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was last read, or left behind, of the three who know about the move."""

    decision: Decision | None
    source: Seen
    target: Seen
    window_is_open: bool = False
    progress: Mapping[str, Any] = field(default_factory=dict)
    """What had been noted of the move."""


@dataclass(slots=True, kw_only=True)
class Hands:
    """Whoever works on a move: what it reaches, and what it has seen to itself in this attempt."""

    move: Move
    term: int
    register: Register
    cells: dict[Side, Cell]
    """Connections to those of the two that answer."""
    fold: Callable[[], Awaitable[VerificationReport]]
    """Recompute the tenant's ledger where it is placed."""
    on_owned: Callable[[], Awaitable[None]]
    """Tell the routers who owns the tenant now."""
    reach: Callable[[str], Awaitable[None]] = NO_FAIL_POINTS.reach
    """Called with the name of each place where a mover may come to harm."""
    has_failed: bool = False
    """An earlier attempt has, by whatever it met."""
    silent: dict[Side, str] = field(default_factory=dict)
    """Why a cell is not among `cells`."""
    abort_reason: str | None = None
    """Why the move is to be aborted, while nothing is decided."""
    differences: list[str] = field(default_factory=list)
    """Between the rows of the two, where that is why."""
    verified_until_s: float | None = None
    gate_is_open: bool = False
    announced_until_s: float = 0.0
    is_pausing: bool = False
    """From just before the fence until writes are taken again."""
    expected_pause_ms: float | None = None
    fenced_at_s: float | None = None
    """When this mover fenced the tenant; None where it found it fenced."""
    decide_by_s: float | None = None
    """Of what is fenced, and undecided, the deadline."""
    copies: int = 0
    noted_at_s: float = 0.0

    @property
    def source(self) -> Cell:
        return self.cell(Side.SOURCE)

    @property
    def target(self) -> Cell:
        return self.cell(Side.TARGET)

    def cell(self, side: Side) -> Cell:
        """Raises CellSilent."""
        if side not in self.cells:
            raise CellSilent(f"{self.name(side)} does not answer: {self.silent.get(side)}")
        return self.cells[side]

    def name(self, side: Side) -> CellName:
        return self.move.source if side is Side.SOURCE else self.move.target

    def job(self, head: Head) -> Importing:
        return Importing(tenant_id=self.move.tenant_id, heading=head.heading, term=self.term)

    async def note(self, phase: str, **progress: object) -> None:
        """Written down for people."""
        self.noted_at_s = time.monotonic()
        await self.register.note(self.move.move_id, self.term, phase, progress)

    def lose(self, side: Side, reason: str) -> None:
        self.cells.pop(side, None)
        self.silent[side] = reason

    def lose_broken(self, error: Exception) -> bool:
        """Let go of cells to which the connection is broken; False: there is none."""
        broken = [side for side, cell in self.cells.items() if cell.closed]
        for side in broken:
            self.lose(side, str(error))
        return bool(broken)

    async def in_time(self, side: Side, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """What the work on the cell returns. Raises CellSilent, and the cell is lost, where it
        takes longer."""
        working = asyncio.create_task(work, name=f"work on the {side}")
        try:
            await asyncio.wait({working}, timeout=max(0.0, seconds))
            if working.done():
                return working.result()
        finally:
            if not working.done():
                working.cancel()
                working.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.lose(side, f"nothing came within {seconds:.1f} s")
        raise CellSilent(f"{self.name(side)} did not answer in time")

    async def see(self, side: Side) -> Seen:
        """The head there, as far as the cell answers."""
        if side not in self.cells:
            return OUT_OF_REACH
        try:
            reading = read_head(self.cells[side], self.move.tenant_id)
            return await self.in_time(side, reading, HEAD_S_MAX)
        except CellSilent:
            return OUT_OF_REACH
        except psycopg.OperationalError as exc:
            if not self.lose_broken(exc):
                raise
            return await self.see(side)
