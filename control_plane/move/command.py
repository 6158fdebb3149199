"""`cloister move` and `cloister moves`: begins a move and shows it until it is over, lists moves,
shows one, aborts one. The moving is the control plane's: it goes on when this command is ended.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from rich.console import Console

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, TenantSlug, connect
from control_plane.client import OperatorClient
from control_plane.errors import NotFound
from control_plane.move.certificate import problems_of
from control_plane.wire import (
    CAN_BE_ROLLED_BACK,
    MAX_PAUSE_MS,
    WINDOW_S,
    WINDOW_S_MAX,
    MoveRehearsal,
    MoveReport,
    is_done,
    is_finished,
)

moves = typer.Typer(
    help="List, show, abort, roll back and finish moves of tenants.", no_args_is_help=True
)

MoveId = Annotated[UUID, typer.Argument(metavar="MOVE_ID", help="As `moves list` shows it.")]


def move(
    tenant: TenantSlug,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Where it is to live.")],
    rollback_window: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=WINDOW_S_MAX,
            help="For so long the old cell keeps its rows and follows; see `moves rollback`.",
        ),
    ] = WINDOW_S,
    max_pause_ms: Annotated[
        int,
        typer.Option(
            metavar="MS", min=1, max=60_000, help="Wait for as long as a longer pause is expected."
        ),
    ] = MAX_PAUSE_MS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would be like, and move nothing.")
    ] = False,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Move a tenant to another cell while its traffic goes on.

    Its rows are copied, what is written meanwhile follows, all is compared; then its writes pause
    for a moment in which the catalog decides, and go on at the new cell. Until then the move can be
    aborted and leaves everything as it was; after it, within the window, it can be rolled back by
    `moves rollback`, or by moving the tenant back. With --json, one line for each change of what is
    known. Exits with 1 if the move was aborted, or would be refused.
    """
    with connect(control_port) as client:
        if dry_run:
            rehearsal = client.rehearse_move(tenant, cell, max_pause_ms=max_pause_ms)
            cli_tables.show(rehearsal, as_json, print_rehearsal)
            raise typer.Exit(0 if rehearsal.refused is None else 1)
        report = client.create_move(
            tenant, cell, window_s=rollback_window, max_pause_ms=max_pause_ms
        )
        _show_to_the_end(client, report, as_json)


def _show_to_the_end(client: OperatorClient, report: MoveReport, as_json: bool) -> None:
    """Exits with 1 if the move was aborted."""
    report = _follow(client, report, as_json, until=is_done)
    if not as_json:
        cli_tables.show(report, False, print_move)
    if report.decision != "commit":
        raise typer.Exit(1)


def _follow(
    client: OperatorClient,
    report: MoveReport,
    as_json: bool,
    until: Callable[[MoveReport], bool],
) -> MoveReport:
    """The first report of which `until` holds; what changes on the way is shown."""
    said = ""
    for last in client.watch_move(report.move_id, until):
        report = last
        line = msgspec.json.encode(report).decode() if as_json else sentence(report)
        if line != said:
            print(line, file=sys.stdout if as_json else sys.stderr, flush=True)
            said = line
    return report


@moves.command("list", epilog="Example: cloister moves list --json")
def list_moves(control_port: ControlPort = None, as_json: Json = False) -> None:
    """List the latest moves, newest first."""
    with connect(control_port) as client:
        found = client.moves()
    cli_tables.show(found, as_json, print_moves)


@moves.command("show", epilog="Example: cloister moves show 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e")
def show_move(
    move_id: MoveId,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Print its certificate, as JSON, to be kept.")
    ] = False,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Show a move: where it is, what it has copied, how long writes paused.

    The certificate says what was proved when the tenant was moved: the digests of all rows in both
    cells, the trial balances, where the journal was cut. `moves check` looks at it without a
    platform.
    """
    with connect(control_port) as client:
        if certificate:
            print(msgspec.json.encode(client.certificate(move_id)).decode())
            return
        found = client.move(move_id)
    cli_tables.show(found, as_json, print_move)


@moves.command("check", epilog="Example: cloister moves check move.json")
def check_certificate(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="As `moves show --certificate` wrote it; -: stdin."),
    ],
) -> None:
    """Check the certificate of a move; no platform is needed. Exits with 1 if it proves nothing."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as exc:
        raise NotFound(f"cannot read {file}: {exc.strerror}") from exc
    problems = problems_of(content)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo("The certificate proves the move: rows and balances of both cells were the same.")


@moves.command("abort", epilog="Example: cloister moves abort 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e")
def abort_move(move_id: MoveId, control_port: ControlPort = None, as_json: Json = False) -> None:
    """Abort a move that is not decided yet; the tenant stays where it is.

    Returns when it is aborted; what was copied is then deleted. Exits with 1 if the move was
    decided in the same moment.
    """
    with connect(control_port) as client:
        report = _follow(client, client.abort_move(move_id), as_json, until=_is_decided)
    if not as_json:
        cli_tables.show(report, False, print_move)
    if report.decision != "abort":
        raise typer.Exit(1)


def _is_decided(report: MoveReport) -> bool:
    return report.decision is not None


@moves.command(
    "rollback", epilog="Example: cloister moves rollback 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e"
)
def roll_back_move(
    move_id: MoveId, control_port: ControlPort = None, as_json: Json = False
) -> None:
    """Bring a tenant back to the cell it was moved from, while its traffic goes on.

    Only within the move's window. What was written at the new cell has followed already, so that
    this takes a moment, and one more short pause of writes. It is a move itself, with the same
    proofs, and can be rolled back in turn. Exits with 1 if it was aborted.
    """
    with connect(control_port) as client:
        _show_to_the_end(client, client.roll_back_move(move_id), as_json)


@moves.command(
    "finish", epilog="Example: cloister moves finish 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e"
)
def finish_move(move_id: MoveId, control_port: ControlPort = None, as_json: Json = False) -> None:
    """End the window in which a move can be rolled back: the old cell deletes its rows.

    The tenant can be moved anywhere then. Safe to repeat.
    """
    with connect(control_port) as client:
        report = _follow(client, client.finish_move(move_id), as_json, until=is_finished)
    if not as_json:
        cli_tables.show(report, False, print_move)


def sentence(report: MoveReport) -> str:
    """Where the move is, in one line."""
    parts = [f"{report.tenant}: {report.source} -> {report.target}: {report.phase}"]
    if report.rows is not None:
        parts.append(f"{report.rows:,} rows")
    if report.rows_per_s is not None and report.bytes_per_s is not None:
        parts.append(f"{report.rows_per_s:,.0f} rows/s")
        parts.append(f"{report.bytes_per_s / 1e6:,.1f} MB/s")
    if report.eta_s is not None:
        parts.append(f"copied in {cli_tables.duration(report.eta_s)}")
    if report.sequences_behind is not None and report.decision is None:
        parts.append(f"{report.sequences_behind:,} sequences behind")
    if report.pause_ms is not None:
        parts.append(f"writes paused for {report.pause_ms:,.0f} ms")
    if report.requests_held is not None:
        parts.append(f"{report.requests_held:,} requests held")
    if report.reason is not None:
        parts.append(report.reason)
    if report.differences:
        parts.append(f"{len(report.differences)} rows differ: {report.differences[0]}")
    return ", ".join(parts)


def print_rehearsal(console: Console, rehearsal: MoveRehearsal) -> None:
    megabytes = rehearsal.journal_bytes / 1e6
    batch = "unknown" if rehearsal.batch_ms_p99 is None else f"{rehearsal.batch_ms_p99:.1f} ms"
    for line in (
        f"{rehearsal.tenant}: {rehearsal.source} -> {rehearsal.target}, nothing was moved",
        f"copy     {rehearsal.rows:,} rows, of them a journal of {megabytes:,.1f} MB",
        "then     follow, compare every row, fence, decide, serve at the new cell",
        f"pause    {rehearsal.expected_pause_ms:.0f} ms expected,"
        f" {rehearsal.max_pause_ms} allowed: a batch takes {batch} (p99),"
        f" a read {rehearsal.read_ms:.1f} ms, a commit {rehearsal.commit_ms:.1f} ms,"
        f" the catalog {rehearsal.catalog_ms:.1f} ms",
    ):
        console.print(line, soft_wrap=True, markup=False)
    if rehearsal.refused is not None:
        console.print(f"refused  {rehearsal.refused}", soft_wrap=True, markup=False)


def print_move(console: Console, report: MoveReport) -> None:
    outcome = {
        "commit": f"moved to {report.target}",
        "abort": f"aborted, the tenant stays on {report.source}",
    }
    console.print(f"move    {report.move_id}", soft_wrap=True)
    console.print(sentence(report), soft_wrap=True, markup=False)
    ended_at = report.decided_at or report.finished_at
    if ended_at is not None and report.decision is not None:
        seconds = (ended_at - report.created_at).total_seconds()
        after = ", then rolled back" if report.phase == "rolled back" else ""
        console.print(f"{outcome[report.decision]} in {seconds:.1f} s{after}")
    if report.phase == CAN_BE_ROLLED_BACK and report.window_ends_at is not None:
        console.print(
            f"until {report.window_ends_at:%Y-%m-%d %H:%M:%S} UTC it can be undone:"
            f" cloister moves rollback {report.move_id}",
            soft_wrap=True,
        )


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
