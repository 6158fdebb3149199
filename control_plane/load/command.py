"""`cloister load`: options, signals, progress and the summary; `run.py` does the work."""

import asyncio
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from control_plane.cli_options import ControlPort, Json, connect
from control_plane.load.api import GIVE_UP_S_MAX
from control_plane.load.checkpoint import default_state_folder
from control_plane.load.display import display
from control_plane.load.errors import LoadError
from control_plane.load.mapping_file import load_mapping
from control_plane.load.run import CONCURRENCY, LoadOptions, LoadRun

KEY_VARIABLE = "CLOISTER_API_KEY"
EXIT_INTERRUPTED = 130
STOP_S_MAX = 10.0
"""After Ctrl-C, rows in flight get so long to be answered; a second Ctrl-C ends it at once."""

RESUME = "Run the same command again to go on; what is loaded is not loaded twice."


def load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CSV file; may end in .gz.")],
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="The tenant's slug.")],
    mapping: Annotated[
        Path,
        typer.Option(metavar="MAP.yaml", help="How rows become transactions: examples/berka.yaml."),
    ],
    api_key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            envvar=KEY_VARIABLE,
            help="An API key of the tenant; in the environment, other users do not see it.",
        ),
    ],
    organization_id: Annotated[
        str | None,
        typer.Option(metavar="UUID", help="The tenant's; default: asked of the control plane."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of the API; default: the router of the platform."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, max=512, help="Requests in flight.")
    ] = CONCURRENCY,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: FILE's name with .rejected.csv, here."),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where progress is kept, to resume faster."),
    ] = None,
    give_up_after: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1.0, help="How long one request is repeated."),
    ] = GIVE_UP_S_MAX,
    resume: Annotated[
        bool, typer.Option(help="Go on where an earlier run stopped; else post every row again.")
    ] = True,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Post a CSV of historical transactions through the public API, repeatably.

    Each row becomes one ledger transaction, as the mapping says. Rows that cannot be loaded go to
    the reject file with their line and the reason; the rest go on. Repeating a load, or resuming
    one that was interrupted, does nothing twice. Exits with 1 if any row was rejected.
    """
    read = load_mapping(mapping)
    if organization_id is None or base_url is None:
        found_id, found_url = _look_up(tenant, control_port, with_id=organization_id is None)
        organization_id, base_url = organization_id or found_id, base_url or found_url
    options = LoadOptions(
        file=file,
        mapping=read,
        base_url=base_url,
        organization_id=organization_id,
        api_key=api_key,
        reject_path=rejects or Path(file.name.removesuffix(".gz")).with_suffix(".rejected.csv"),
        state_folder=state_dir or default_state_folder(),
        concurrency=concurrency,
        give_up_s=give_up_after,
        resumes=resume,
    )
    console = Console(stderr=True)
    loading = LoadRun(options, on_resume=lambda lines: _say_resumed(console, lines))
    failure = _run(loading, console)
    _print_summary(loading, as_json)
    if failure is not None:
        if failure.retryable or loading.tally.rows:
            console.print(RESUME, highlight=False)
        raise failure
    if loading.is_stopped:
        console.print(f"Interrupted. {RESUME}", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED)
    if loading.tally.rejected:
        raise typer.Exit(1)


def _look_up(tenant: str, control_port: int | None, with_id: bool) -> tuple[str, str]:
    """The tenant's organization id (empty if not asked for) and the API's address."""
    with connect(control_port) as client:
        url = f"http://{client.status().router.address}"
        if not with_id:
            return "", url
        return str(client.tenant(tenant).organization_id), url


def _run(loading: LoadRun, console: Console) -> LoadError | None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_run_with_signals(loading, console))
        except LoadError as exc:
            return exc
    return None


async def _run_with_signals(loading: LoadRun, console: Console) -> None:
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(loading.run(), name="load")

    def stop() -> None:
        if loading.is_stopped:
            work.cancel()
        loading.stop()
        loop.call_later(STOP_S_MAX, work.cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    size = loading.file_size()
    shown = asyncio.create_task(display(loading.tally, size, console), name="load-display")
    try:
        with suppress(asyncio.CancelledError):
            await work
    finally:
        shown.cancel()
        await asyncio.wait({shown})


def _say_resumed(console: Console, lines: int) -> None:
    console.print(f"Going on after line {lines:,}, where an earlier run had come.", highlight=False)


def _print_summary(loading: LoadRun, as_json: bool) -> None:
    summary = loading.summary()
    if as_json:
        typer.echo(msgspec.json.encode(summary))
        return
    typer.echo(
        f"{summary.rows:,} rows in {summary.seconds:.1f} s: {summary.loaded:,} loaded,"
        f" {summary.already_loaded:,} already loaded, {summary.rejected:,} rejected"
    )
    if summary.reject_file is not None:
        typer.echo(f"The rejected rows and why: {summary.reject_file}")
