"""The `cloister` command: the control plane's commands, and those that run a platform.

Also `python -m infra.cli`, which a detached supervisor is started with.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.status import Status

from control_plane.cli import app
from control_plane.errors import ControlPlaneError
from infra.errors import InfraError
from infra.local.demo import render_snippet
from infra.local.layout import DATA_VARIABLE, default_data_directory
from infra.local.platform import Ready, Reports
from infra.local.reporting import Report, ReportPipe
from infra.local.up import UpOptions, run_detached, run_here, stop_platform

EXIT_INTERRUPTED: Final = 130
ROUTER_PORT: Final = 8080
CONTROL_PORT: Final = 8081

DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory that holds everything of this platform: databases, secrets, logs. Created"
        " at the first start; two platforms never share one.",
        envvar=DATA_VARIABLE,
        show_default="~/.local/share/cloister",
    ),
]


def paragraphs(text: str) -> str:
    """The text with its paragraphs unwrapped, so that the help wraps them to the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@app.command(
    help=paragraphs("""
    Start the whole platform: databases, control plane, cells, router.

    Everything runs on this machine, on the loopback, under one supervisor that restarts what dies.
    The command is ready only when the API answers; then it prints the addresses, a demo tenant's
    credentials and a first program for the official SDK. Ctrl-C stops everything cleanly, and the
    next start finds all data again.

    The other commands find the platform by its control port; the operator token they need is
    written, for this user alone, where they look for it.
    """),
    epilog=paragraphs("""
    Examples:

    cloister up

    cloister up --file cells.yaml --data ./platform --detach

    cloister up --router-port 9080 --control-port 9081 --json
    """),
)
def up(
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The cells to run (cells.yaml). Changes take effect at the next `up`.",
            show_default="a built-in example of two cells",
        ),
    ] = None,
    data: DataOption = None,
    router_port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Port of the API that tenants call; 0 takes any free one.",
        ),
    ] = ROUTER_PORT,
    control_port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Port of the control plane, which the other commands find by the same option; 0"
            " takes any free one.",
        ),
    ] = CONTROL_PORT,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Return when the platform is ready; `cloister down` stops it."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object with the addresses instead of the explanation."
        ),
    ] = False,
    report_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start a platform and run it here, or leave a supervisor behind (`--detach`)."""
    options = UpOptions(
        file=file,
        data=data or default_data_directory(),
        router_port=router_port,
        control_port=control_port,
    )
    if report_fd is not None:
        supervise(options, report_fd)
        return
    with explained_errors(), progress_shown() as status:
        if detach:
            ready = run_detached(options, status.update)
            status.stop()
            print_ready(ready, as_json=as_json, stop_with=f"cloister down --data {options.data}")
            return

        def print_and_go_on(ready: Ready) -> None:
            status.stop()
            print_ready(ready, as_json=as_json, stop_with="Ctrl-C")

        reports = Reports(progress=status.update, ready=print_and_go_on)
        run_here(options, reports, show_log=True)


@app.command(
    help=paragraphs("""
    Stop the platform that runs on a data directory, and wait until it has ended.

    Requests in flight are answered first, and the databases are shut down in order. Nothing is
    lost or removed: `cloister up` goes on where this stopped. Says so, and succeeds, if nothing was
    running.
    """),
    epilog="Example: cloister down --data ./platform",
)
def down(data: DataOption = None) -> None:
    """Stop the platform on a data directory, however it was started."""
    root = data or default_data_directory()
    with explained_errors(), progress_shown() as status:
        status.update("Stopping the platform")
        pid = stop_platform(root)
    if pid is None:
        typer.echo(f"No platform was running on {root}.")
    else:
        typer.echo(f"The platform on {root} has stopped.")


def supervise(options: UpOptions, descriptor: int) -> None:
    """The body of a detached supervisor: tells its parent over the pipe how the start goes."""
    pipe = ReportPipe(descriptor)
    reports = Reports(
        progress=lambda text: pipe.send(Report(progress=text)),
        ready=lambda ready: pipe.send(Report(ready=ready)),
    )
    try:
        run_here(options, reports, show_log=False)
    except (InfraError, ControlPlaneError) as exc:
        pipe.send(Report(failed=str(exc)))
        raise typer.Exit(1) from exc


class Progress:
    """A spinner on standard error; plain lines where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def update(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{text} …", markup=False, highlight=False)
        elif self._status is None:
            self._status = self._console.status(f"{text} …")
            self._status.start()
        else:
            self._status.update(f"{text} …")

    def stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextmanager
def progress_shown() -> Iterator[Progress]:
    progress = Progress(Console(stderr=True, soft_wrap=True))
    try:
        yield progress
    finally:
        progress.stop()


@contextmanager
def explained_errors() -> Iterator[None]:
    """Our errors as one message, like those of the control plane, which `app` itself explains."""
    try:
        yield
    except InfraError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(exc.status) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(EXIT_INTERRUPTED) from exc


def print_ready(ready: Ready, *, as_json: bool, stop_with: str) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(ready))
        sys.stdout.flush()
        return
    cells = ", ".join(f"{cell.name} ({cell.zone})" for cell in ready.cells)
    typer.echo(f"""\
Cloister is running.

  API            {ready.router}
  control plane  {ready.control_plane}
  cells          {cells}
  data           {ready.data_directory}
  demo tenant    organization_id {ready.demo.organization_id}
                 api_key         {ready.demo.api_key}

A first transaction, with the official SDK (pip install modern-treasury); paste it into Python:

{render_snippet(ready.demo, ready.router)}
Stop it with: {stop_with}""")
    sys.stdout.flush()


def main() -> None:
    app()


if __name__ == "__main__":
    main()
