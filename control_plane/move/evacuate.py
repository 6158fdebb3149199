"""`cloister evacuate`: moves the tenants of a cell away, one after another.

It keeps nothing: who is still on the cell, and which moves are open, the platform says. So after an
interruption, of whatever kind, the same command goes on where it was.
"""

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from control_plane.cli_options import ControlPort, Json, connect
from control_plane.client import OperatorClient
from control_plane.errors import ControlPlaneError, NoOpenCell, NotFound, PlatformRefused
from control_plane.wire import (
    CONTRADICTION,
    MAX_PAUSE_MS,
    WAITS_FOR_SHORT_PAUSE,
    WINDOW_S,
    WINDOW_S_MAX,
    CellReport,
    MoveReport,
    is_done,
)

POLL_S = 0.2
WAIT_FOR_PAUSE_S_MAX = 60.0
"""A tenant for whom only a long pause is to be expected is left for later after that time."""
ATTEMPTS_MAX = 3
LATER = ("move_in_progress", "tenant_provisioning", "placement_changed", "cell_unavailable")
"""Refusals that may have passed when it is the tenant's turn again."""


class EvacuationStopped(ControlPlaneError):
    """Tenants were left on the cell."""

    code = "evacuation_stopped"


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of --json."""

    event: str
    """moving, moved, later, stopped or done."""
    tenant: str | None = None
    cell: str | None = None
    move_id: UUID | None = None
    pause_ms: float | None = None
    reason: str | None = None
    moved: int
    left: int


def evacuate(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="The cell that is to be empty.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="CELL", help="Where to; default: each to the open cell with fewest tenants."
        ),
    ] = None,
    pause: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Between the beginnings of two moves.")
    ] = 2.0,
    max_parallel: Annotated[
        int, typer.Option(metavar="N", min=1, max=16, help="Moves at a time.")
    ] = 2,
    max_pause_ms: Annotated[
        int, typer.Option(metavar="MS", min=1, max=60_000, help="As of `cloister move`.")
    ] = MAX_PAUSE_MS,
    rollback_window: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=0, max=WINDOW_S_MAX, help="As of `cloister move`."),
    ] = WINDOW_S,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Move every tenant of a cell to other cells, while their traffic goes on.

    A tenant that can be moved with a long pause of writes only is left for later. The first
    verification that fails stops it: nothing more is moved, and the tenant stays where it is. Run
    the same command again to go on after an interruption. Close the cell to new tenants first, by
    `accepts_tenants: false` in cells.yaml. Exits with 1 if tenants are left.
    """
    with connect(control_port) as client:
        work = Evacuation(
            client=client,
            cell=cell,
            to=to,
            max_parallel=max_parallel,
            pause_s=pause,
            max_pause_ms=max_pause_ms,
            window_s=rollback_window,
            as_json=as_json,
        )
        work.run()


@dataclass(frozen=True, slots=True)
class Running:
    tenant: str
    move_id: UUID
    began_s: float


@dataclass(kw_only=True)
class Evacuation:
    """One run of the command."""

    client: OperatorClient
    cell: str
    to: str | None
    max_parallel: int
    pause_s: float
    max_pause_ms: int
    window_s: int
    as_json: bool
    waiting: deque[str] = field(default_factory=deque)
    running: list[Running] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """Of those that were left for later, why."""
    moved: int = 0
    stopped_because: str | None = None
    next_begin_s: float = 0.0

    def run(self) -> None:
        """Raises EvacuationStopped with all that is left, and why."""
        self._check_cells()
        self.waiting.extend(sorted(self._tenants()))
        total = len(self.waiting)
        columns = (
            TextColumn("evacuating {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tenants, left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, highlight=False)
        with Progress(*columns, console=console, disable=self.as_json) as progress:
            task = progress.add_task(self.cell, total=total)
            while self.running or (self.waiting and self.stopped_because is None):
                self._begin_next()
                self._look_at_running(progress.console)
                progress.update(task, completed=self.moved)
                time.sleep(POLL_S)
        self._end()

    def _check_cells(self) -> None:
        names = {each.name for each in self.client.status().cells}
        for name in (self.cell, self.to):
            if name is not None and name not in names:
                raise NotFound(f"there is no cell {name!r}: {', '.join(sorted(names))}")
        if self.to == self.cell:
            raise NotFound(f"--to {self.cell} is the cell that is to be empty: name another one")

    def _tenants(self) -> list[str]:
        return [each.tenant for each in self.client.tenants() if each.cell == self.cell]

    def _is_here(self, tenant: str) -> bool:
        return self.client.tenant(tenant).cell == self.cell

    def _target(self) -> str:
        if self.to is not None:
            return self.to

        def may_take(cell: CellReport) -> bool:
            return cell.name != self.cell and cell.healthy and cell.accepts_tenants

        cells = [cell for cell in self.client.status().cells if may_take(cell)]
        if not cells:
            raise NoOpenCell("no other cell is healthy and takes tenants: name one with --to")
        return min(cells, key=lambda cell: (cell.tenants, cell.name)).name

    def _begin_next(self) -> None:
        is_full = len(self.running) >= self.max_parallel
        is_early = time.monotonic() < self.next_begin_s
        if is_full or is_early or not self.waiting or self.stopped_because is not None:
            return
        tenant = self.waiting.popleft()
        if not self._is_here(tenant):
            # Moved by another run, or by hand, since this one began.
            self._tell("left", tenant, None)
            return
        try:
            report = self.client.create_move(
                tenant, self._target(), window_s=self.window_s, max_pause_ms=self.max_pause_ms
            )
        except PlatformRefused as exc:
            if exc.code not in LATER and self._is_here(tenant):
                raise
            mine = self._open_move(tenant) if exc.code == "move_in_progress" else None
            if mine is None:
                self._later(tenant, str(exc))
                return
            report = mine
        self.running.append(Running(tenant, report.move_id, time.monotonic()))
        self.next_begin_s = time.monotonic() + self.pause_s
        self._tell("moving", tenant, report)

    def _open_move(self, tenant: str) -> MoveReport | None:
        """The move away from the cell that somebody has begun already."""
        for report in self.client.moves():
            is_mine = report.tenant == tenant and report.source == self.cell
            if is_mine and report.finished_at is None and report.decision is None:
                return report
        return None

    def _look_at_running(self, console: Console) -> None:
        for each in list(self.running):
            report = self.client.move(each.move_id)
            if report.phase == CONTRADICTION:
                self.running.remove(each)
                self.stopped_because = f"{each.tenant}: {report.reason or 'the heads contradict'}"
                self._tell("stopped", each.tenant, report)
                continue
            if not is_done(report):
                is_long = time.monotonic() - each.began_s > WAIT_FOR_PAUSE_S_MAX
                if is_long and report.phase == WAITS_FOR_SHORT_PAUSE:
                    self.client.abort_move(each.move_id)
                continue
            self.running.remove(each)
            if report.decision == "commit":
                self.moved += 1
                self._tell("moved", each.tenant, report)
                pause = "?" if report.pause_ms is None else f"{report.pause_ms:.0f}"
                console.print(f"{each.tenant} is on {report.target}, paused for {pause} ms")
            elif report.differences:
                self.stopped_because = f"{each.tenant}: {report.differences[0]}"
                self._tell("stopped", each.tenant, report)
            else:
                self._later(each.tenant, report.reason or "aborted")

    def _later(self, tenant: str, reason: str) -> None:
        self.attempts[tenant] = self.attempts.get(tenant, 0) + 1
        self.reasons[tenant] = reason
        if self.attempts[tenant] < ATTEMPTS_MAX:
            self.waiting.append(tenant)
        self.next_begin_s = time.monotonic() + self.pause_s
        self._tell("later", tenant, None, reason)

    def _end(self) -> None:
        left = sorted(self._tenants())
        if not left:
            self._tell("done", None, None)
            if not self.as_json:
                typer.echo(f"{self.cell} holds no tenants any more; {self.moved} were moved.")
            return
        why = "".join(f"\n  {name}: {self.reasons[name]}" for name in left if name in self.reasons)
        if self.stopped_because is not None:
            why = f"\n  a verification failed, {self.stopped_because}" + why
        raise EvacuationStopped(f"{len(left)} tenants are left on {self.cell}{why}")

    def _tell(
        self, event: str, tenant: str | None, report: MoveReport | None, reason: str | None = None
    ) -> None:
        if not self.as_json:
            return
        told = Told(
            event=event,
            tenant=tenant,
            cell=report.target if report else None,
            move_id=report.move_id if report else None,
            pause_ms=report.pause_ms if report else None,
            reason=reason or (report.reason if report else None),
            moved=self.moved,
            left=len(self.waiting) + len(self.running),
        )
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        sys.stdout.flush()
