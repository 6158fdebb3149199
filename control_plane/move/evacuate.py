"""`cloister evacuate`: moves the tenants of a cell away, one after another.

It keeps nothing: who is still on the cell, and which moves are open, the platform says. So after an
interruption, of whatever kind, the same command goes on where it was.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypeVar
from uuid import UUID

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from control_plane.cli_options import ControlPort, Json, connect
from control_plane.cli_tables import duration
from control_plane.client import AWAY_S_MAX, OperatorClient, is_back_soon
from control_plane.errors import (
    ControlPlaneError,
    MoveDecided,
    NoOpenCell,
    NotFound,
    PlatformError,
    PlatformRefused,
)
from control_plane.wire import (
    CONTRADICTION,
    MAX_PAUSE_MS,
    MOVES_AT_ONCE_MAX,
    WINDOW_S,
    WINDOW_S_MAX,
    CellReport,
    MoveReport,
    is_done,
)

POLL_S = 0.2
WAIT_FOR_PAUSE_S_MAX = 60.0
"""A tenant that is copied, and waits for so long without coming closer to its pause, is left for
later: only a long one is to be expected, or its fence does not come through, or more is written
than can be followed."""
BUSY_PHASES = ("planned", "prepare", "copy", "compare", "clean up")
"""They take as long as the tenant is large, and come to an end: not counted as waiting."""
CLOSER = 0.9
"""What is left to follow has become less if it is below so much of what it was."""
LOOK_S_MAX = 1.0
"""A move that was not looked at for longer, as while the control plane was away, did not wait."""
ATTEMPTS_MAX = 3
LATER = ("move_in_progress", "tenant_provisioning", "placement_changed", "cell_unavailable")
"""Refusals that may have passed when it is the tenant's turn again."""

_AnswerT = TypeVar("_AnswerT")


class EvacuationStopped(ControlPlaneError):
    """Tenants were left on the cell."""

    code = "evacuation_stopped"


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of --json."""

    event: str
    """moving, moved, later, left (it was gone already), waiting (for the control plane), stopped or
    done."""
    tenant: str | None = None
    cell: str | None = None
    move_id: UUID | None = None
    pause_ms: float | None = None
    reason: str | None = None
    moved: int
    left: int
    eta_s: float | None = None
    """Until the last one is moved, if the others take as long; absent while none is moved yet."""


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
        int,
        typer.Option(metavar="N", min=1, help=f"Moves at a time, at most {MOVES_AT_ONCE_MAX}."),
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

    A tenant whose pause of writes would be too long, or that is written to faster than its journal
    can be followed, is left for later. The first verification that fails stops it: nothing more is
    moved, and the tenant stays where it is. A control plane that restarts is waited for. Run the
    same command again to go on after an interruption. Close the cell to new tenants first, by
    `accepts_tenants: false` in cells.yaml. Exits with 1 if tenants are left.
    """
    if max_parallel > MOVES_AT_ONCE_MAX:
        raise typer.BadParameter(
            f"the control plane works on {MOVES_AT_ONCE_MAX} moves at a time, more would only wait",
            param_hint="--max-parallel",
        )
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


@dataclass(slots=True)
class Running:
    """A move under way, and how long it has waited."""

    tenant: str
    move_id: UUID
    looked_s: float
    """When it was looked at last, on the monotonic clock."""
    waited_s: float = 0.0
    """Copied, and not closer to its end; over all its phases, as one follows the other quickly."""
    least_behind: float = float("inf")
    """The fewest sequences that were left to follow."""
    given_up_because: str | None = None
    """Why its abort was asked for."""

    def look(self, report: MoveReport, now_s: float) -> None:
        looked_at_s, self.looked_s = self.looked_s, now_s
        behind = report.sequences_behind
        if behind is not None and behind < CLOSER * self.least_behind:
            self.least_behind, self.waited_s = behind, 0.0
        elif report.phase not in BUSY_PHASES and report.decision != "commit":
            self.waited_s += min(LOOK_S_MAX, now_s - looked_at_s)


def why_it_waits(report: MoveReport) -> str:
    if report.reason is not None:
        return report.reason
    if report.phase == "follow" and report.sequences_behind:
        return f"{report.sequences_behind:,} sequences behind: more is written than can be followed"
    return f"it is in phase {report.phase!r} for long"


def emptiest(cells: Sequence[CellReport], *, but: str) -> str:
    """The cell to take the next tenant. Raises NoOpenCell."""
    may_take = [
        cell for cell in cells if cell.name != but and cell.healthy and cell.accepts_tenants
    ]
    if not may_take:
        raise NoOpenCell("no other cell is healthy and takes tenants: name one with --to")
    return min(may_take, key=lambda cell: (cell.tenants, cell.name)).name


def eta_s(*, moved: int, left: int, elapsed_s: float) -> float | None:
    """Until the last one is moved, if the others take as long; None: there is nothing to go by."""
    return round(elapsed_s / moved * left, 1) if moved else None


def time_left(seconds: float | None) -> str:
    return f"{duration(seconds)} left" if seconds is not None else "time left not known yet"


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
    began_s: float = field(default_factory=time.monotonic)
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def run(self) -> None:
        """Raises EvacuationStopped with all that is left, and why."""
        self._check_cells()
        self.waiting.extend(sorted(self._tenants()))
        total = len(self.waiting)
        columns = (
            TextColumn("evacuating {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tenants, {task.fields[time_left]}"),
        )
        with Progress(*columns, console=self.console, disable=self.as_json) as progress:
            task = progress.add_task(self.cell, total=total, time_left=time_left(None))
            while self.running or (self.waiting and self.stopped_because is None):
                self._begin_next()
                for each in list(self.running):
                    self._look_at(each)
                progress.update(task, completed=self.moved, time_left=time_left(self._eta_s()))
                time.sleep(POLL_S)
        self._end()

    def _check_cells(self) -> None:
        names = {each.name for each in self.client.status().cells}
        for name in (self.cell, self.to):
            if name is not None and name not in names:
                raise NotFound(f"there is no cell {name!r}: {', '.join(sorted(names))}")
        if self.to == self.cell:
            raise NotFound(f"--to {self.cell} is the cell that is to be empty: name another one")

    def _ask(self, question: Callable[[], _AnswerT]) -> _AnswerT:
        """The answer. A control plane that is away is waited for, for AWAY_S_MAX, and it is said;
        so are its cells, of which it knows nothing when it has just started."""
        away_since_s: float | None = None
        while True:
            try:
                return question()
            except (PlatformError, NoOpenCell) as exc:
                may_wait = isinstance(exc, NoOpenCell) or is_back_soon(exc)
                if not may_wait or exc.code in LATER:
                    raise
                if away_since_s is None:
                    away_since_s = time.monotonic()
                    self._tell("waiting", None, None, str(exc))
                    self._say(f"waiting, for {AWAY_S_MAX:.0f} s at most: {exc}")
                elif time.monotonic() - away_since_s > AWAY_S_MAX:
                    raise
            time.sleep(POLL_S)

    def _tenants(self) -> list[str]:
        return [each.tenant for each in self._ask(self.client.tenants) if each.cell == self.cell]

    def _is_here(self, tenant: str) -> bool:
        return self._ask(partial(self.client.tenant, tenant)).cell == self.cell

    def _target(self) -> str:
        if self.to is not None:
            return self.to
        return self._ask(lambda: emptiest(self.client.status().cells, but=self.cell))

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
        target = self._target()
        try:
            report = self._ask(
                lambda: self.client.create_move(
                    tenant, target, window_s=self.window_s, max_pause_ms=self.max_pause_ms
                )
            )
        except PlatformRefused as exc:
            if exc.code not in LATER and self._is_here(tenant):
                raise
            # Also this run's own, where the answer was lost.
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
        for report in self._ask(self.client.moves):
            is_mine = report.tenant == tenant and report.source == self.cell
            if is_mine and report.finished_at is None and report.decision is None:
                return report
        return None

    def _look_at(self, each: Running) -> None:
        report = self._ask(partial(self.client.move, each.move_id))
        each.look(report, time.monotonic())
        if report.phase == CONTRADICTION:
            self._stop(each, report, report.reason or "the heads contradict")
        elif not is_done(report):
            if each.waited_s > WAIT_FOR_PAUSE_S_MAX:
                self._give_up(each, report)
        elif report.decision == "commit":
            self.running.remove(each)
            self.moved += 1
            self._tell("moved", each.tenant, report)
            pause = "?" if report.pause_ms is None else f"{report.pause_ms:.0f}"
            self._say(
                f"{each.tenant} is on {report.target}, paused for {pause} ms;"
                f" {self._left()} to go, {time_left(self._eta_s())}"
            )
        elif report.differences:
            self._stop(each, report, report.differences[0])
        else:
            self.running.remove(each)
            self._later(each.tenant, each.given_up_because or report.reason or "aborted")

    def _stop(self, each: Running, report: MoveReport, reason: str) -> None:
        self.running.remove(each)
        self.stopped_because = f"{each.tenant}: {reason}"
        self._tell("stopped", each.tenant, report)

    def _give_up(self, each: Running, report: MoveReport) -> None:
        """Have the move aborted; one that does not even come to that end leaves its place."""
        if each.given_up_because is not None:
            self.running.remove(each)
            self._later(each.tenant, each.given_up_because)
            return
        each.given_up_because, each.waited_s = why_it_waits(report), 0.0
        try:
            self._ask(partial(self.client.abort_move, each.move_id))
        except PlatformRefused as exc:
            # Decided in this very moment: the next look sees how.
            if exc.code != MoveDecided.code:
                raise

    def _later(self, tenant: str, reason: str) -> None:
        self.attempts[tenant] = self.attempts.get(tenant, 0) + 1
        self.reasons[tenant] = reason
        if self.attempts[tenant] < ATTEMPTS_MAX:
            self.waiting.append(tenant)
        self.next_begin_s = time.monotonic() + self.pause_s
        self._tell("later", tenant, None, reason)
        self._say(f"{tenant} is left for later: {reason}")

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

    def _left(self) -> int:
        return len(self.waiting) + len(self.running)

    def _eta_s(self) -> float | None:
        elapsed_s = time.monotonic() - self.began_s
        return eta_s(moved=self.moved, left=self._left(), elapsed_s=elapsed_s)

    def _say(self, sentence: str) -> None:
        if not self.as_json:
            self.console.print(sentence, soft_wrap=True, markup=False)

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
            left=self._left(),
            eta_s=self._eta_s(),
        )
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        sys.stdout.flush()
