"""`python -m benchmarks [NAME] [--quick]`; `--help` lists the names.

Progress goes to stderr, markdown to stdout; `out/NAME.json` and README.md's tables are written.
A benchmark that cannot run here says why and the others go on; the exit status is 1 when one of
those asked for gave wrong answers or could not start.
"""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Protocol

import typer
from rich.console import Console

from benchmarks.api import run_api
from benchmarks.engine import run_engine_benchmark
from benchmarks.errors import BenchmarkError, Skipped
from benchmarks.growth import run_growth
from benchmarks.lists import run_lists
from benchmarks.move import run_moves
from benchmarks.overload import run_overload
from benchmarks.queued import run_queued
from benchmarks.report import Progress, Report, store
from benchmarks.rounds import Effort
from benchmarks.router import run_router
from benchmarks.routing import run_routing
from benchmarks.table import fill_readme, render, unmet
from benchmarks.time_travel import run_time
from infra.errors import InfraError


class Name(StrEnum):
    ENGINE = "engine"
    GROWTH = "growth"
    API = "api"
    ROUTER = "router"
    ROUTING = "routing"
    TIME = "time"
    LISTS = "lists"
    MOVE = "move"
    OVERLOAD = "overload"
    QUEUED = "queued"
    ALL = "all"


class Benchmark(Protocol):
    def __call__(self, progress: Progress, effort: Effort) -> Report: ...


BENCHMARKS: Final[dict[Name, Benchmark]] = {
    Name.ENGINE: run_engine_benchmark,
    Name.GROWTH: run_growth,
    Name.API: run_api,
    Name.ROUTER: run_router,
    Name.ROUTING: run_routing,
    Name.TIME: run_time,
    Name.LISTS: run_lists,
    Name.MOVE: run_moves,
    Name.OVERLOAD: run_overload,
    Name.QUEUED: run_queued,
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)


@app.command()
def main(
    name: Annotated[Name, typer.Argument(help="Which benchmark to run.")] = Name.ALL,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short smoke runs; README.md stays as it is.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds (moves of a tenant) instead of the usual number."),
    ] = None,
) -> None:
    """Measure Cloister beside its yardsticks and print the tables."""
    names = list(BENCHMARKS) if name is Name.ALL else [name]
    reports: list[Report] = []
    failed = False
    for each in names:
        try:
            reports.append(run(each, Effort(quick=quick, rounds=rounds)))
        except Skipped as reason:
            console.print(f"{each} skipped: {reason}", style="yellow", markup=False)
        except (BenchmarkError, InfraError) as error:
            console.print(f"{each} failed: {error}", style="red", markup=False)
            failed = True
    publish(reports)
    if failed:
        raise typer.Exit(1)


def run(name: Name, effort: Effort) -> Report:
    with console.status(f"{name}: starting") as status:

        def progress(sentence: str) -> None:
            status.update(f"{name}: {sentence}")
            if not console.is_terminal:
                console.print(f"{name}: {sentence}")

        return BENCHMARKS[name](progress, effort)


def publish(reports: Sequence[Report]) -> None:
    for report in reports:
        path = store(report)
        sys.stdout.write(f"\n## {report.name}\n\n{render(report)}\n")
        if not report.quick and not fill_readme(report):
            console.print(f"[yellow]README.md has no place for {report.name}[/]")
        console.print(f"{report.name}: {path}")
    for check in unmet(reports):
        console.print(f"[yellow]missed:[/] {check.what}: {check.value:.3g}, goal {check.goal:g}")


if __name__ == "__main__":
    app()
