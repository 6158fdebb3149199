"""`cloister move` and `cloister moves`: begins a move and shows it until it is over, lists moves,
shows one, aborts one. The moving is the control plane's: it goes on when this command is ended.
"""

import sys
import time
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from rich.console import Console

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, TenantSlug, connect
from control_plane.client import OperatorClient
from control_plane.errors import PlatformUnavailable
from control_plane.wire import MoveReport

POLL_S = 0.2
AWAY_S_MAX = 60.0
"""A control plane that restarts goes on with the move; so long it is waited for."""

moves = typer.Typer(help="List, show and abort moves of tenants.", no_args_is_help=True)

MoveId = Annotated[UUID, typer.Argument(metavar="MOVE_ID", help="As `moves list` shows it.")]


def move(
    tenant: TenantSlug,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Where it is to live.")],
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Move a tenant to another cell while its traffic goes on.

    Its rows are copied, what is written meanwhile follows, all is compared; then its writes pause
    for a moment in which the catalog decides, and go on at the new cell. Until then the move can be
    aborted and leaves everything as it was. With --json, one line for each change of what is
    known. Exits with 1 if the move was aborted.
    """
    with connect(control_port) as client:
        report = _follow(client, client.create_move(tenant, cell), as_json)
    if not as_json:
        cli_tables.show(report, False, print_move)
    if report.decision != "commit":
        raise typer.Exit(1)


def _follow(client: OperatorClient, report: MoveReport, as_json: bool) -> MoveReport:
    """The move's last report; what changes on the way is shown."""
    said = ""
    answered_s = time.monotonic()
    while True:
        line = msgspec.json.encode(report).decode() if as_json else sentence(report)
        if line != said:
            print(line, file=sys.stdout if as_json else sys.stderr, flush=True)
            said = line
        if report.finished_at is not None:
            return report
        time.sleep(POLL_S)
        try:
            report = client.move(report.move_id)
            answered_s = time.monotonic()
        except PlatformUnavailable:
            if time.monotonic() - answered_s > AWAY_S_MAX:
                raise


@moves.command("list", epilog="Example: cloister moves list --json")
def list_moves(control_port: ControlPort = None, as_json: Json = False) -> None:
    """List the latest moves, newest first."""
    with connect(control_port) as client:
        found = client.moves()
    cli_tables.show(found, as_json, print_moves)


@moves.command("show", epilog="Example: cloister moves show 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e")
def show_move(move_id: MoveId, control_port: ControlPort = None, as_json: Json = False) -> None:
    """Show a move: where it is, what it has copied, how long writes paused."""
    with connect(control_port) as client:
        found = client.move(move_id)
    cli_tables.show(found, as_json, print_move)


@moves.command("abort", epilog="Example: cloister moves abort 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e")
def abort_move(move_id: MoveId, control_port: ControlPort = None, as_json: Json = False) -> None:
    """Abort a move that is not decided yet; the tenant stays where it is. Safe to repeat."""
    with connect(control_port) as client:
        found = client.abort_move(move_id)
    cli_tables.show(found, as_json, print_move)


def sentence(report: MoveReport) -> str:
    """Where the move is, in one line."""
    parts = [f"{report.tenant}: {report.source} -> {report.target}: {report.phase}"]
    if report.rows is not None:
        parts.append(f"{report.rows:,} rows")
    if report.bytes is not None and report.copy_seconds:
        parts.append(f"{report.bytes / report.copy_seconds / 1e6:,.1f} MB/s")
    if report.sequences_behind is not None and report.decision is None:
        parts.append(f"{report.sequences_behind:,} sequences behind")
    if report.pause_ms is not None:
        parts.append(f"writes paused for {report.pause_ms:,.0f} ms")
    if report.reason is not None:
        parts.append(report.reason)
    return ", ".join(parts)


def print_move(console: Console, report: MoveReport) -> None:
    outcome = {
        "commit": f"moved to {report.target}",
        "abort": f"aborted, the tenant stays on {report.source}",
    }
    console.print(f"move    {report.move_id}", soft_wrap=True)
    console.print(sentence(report), soft_wrap=True, markup=False)
    if report.finished_at is not None and report.decision is not None:
        seconds = (report.finished_at - report.created_at).total_seconds()
        console.print(f"{outcome[report.decision]} in {seconds:.1f} s")


def print_moves(console: Console, reports: Sequence[MoveReport]) -> None:
    table = cli_tables.new_table("move", "tenant", "from", "to", "phase", "rows", "pause", "begun")
    for report in reports:
        table.add_row(
            str(report.move_id),
            report.tenant,
            report.source,
            report.target,
            report.phase,
            "-" if report.rows is None else f"{report.rows:,}",
            "-" if report.pause_ms is None else f"{report.pause_ms:,.0f} ms",
            f"{report.created_at:%Y-%m-%d %H:%M:%S}",
        )
    console.print(table)
