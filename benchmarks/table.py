"""Markdown of the reports: to the terminal, and into README.md between its markers.

A marker pair is `<!-- results:NAME -->`, `<!-- /results:NAME -->`; what is between is replaced.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.machine import Machine
from benchmarks.report import Cell, Check, Report, Table

BUSY: Final = 0.25
"""Load average per core above which something else was running; the run itself is not in it."""
SHARE_MIN: Final = 0.8
"""Of a processor to a loop that does nothing else; below it, somebody else has the host."""
README: Final = Path(__file__).with_name("README.md")


def render(report: Report) -> str:
    """The report as markdown."""
    parts = [describe(report), *(render_table(table) for table in report.tables)]
    if report.checks:
        parts.append("\n".join(render_check(check) for check in report.checks))
    parts += [f"Skipped: {reason}." for reason in report.skipped]
    return "\n\n".join(parts)


def describe(report: Report) -> str:
    smoke = "**A smoke run: these figures mean nothing.** " if report.quick else ""
    machine = report.machine
    is_busy = machine.load_average > machine.cores * BUSY or machine.processor_share < SHARE_MIN
    busy = " **The machine was busy before the run.**" if is_busy else ""
    rounds = f" Medians of {report.rounds} rounds." if report.rounds else ""
    return f"{smoke}{report.at}, on {describe_machine(machine)}.{busy}{rounds}"


def describe_machine(machine: Machine) -> str:
    return (
        f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB,"
        f" Linux {machine.kernel}, Python {machine.python}, {machine.postgres};"
        f" a flush takes {machine.flush_us:g} µs; load average before the run"
        f" {machine.load_average:g}, {machine.processor_share:.0%} of a processor for a loop alone"
    )


def render_table(table: Table) -> str:
    head = [f"**{table.title}**", "", line(table.columns)]
    head.append(line("---" if index == 0 else "--:" for index in range(len(table.columns))))
    body = [line(show(value) for value in row) for row in table.rows]
    notes = [text for note in table.notes for text in ("", note)]
    return "\n".join([*head, *body, *notes])


def line(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def show(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
        case str():
            return value


def render_check(check: Check) -> str:
    relation = "≤" if check.at_most else "≥"
    mark = "met" if check.is_met else "**missed**"
    return f"- {check.what}: {check.value:.3g} (goal {relation} {check.goal:g}): {mark}"


def fill_readme(report: Report, readme: Path = README) -> bool:
    """Put the report between its markers; False where the file has no such markers."""
    text = readme.read_text()
    name = re.escape(report.name)
    markers = re.compile(rf"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)", re.DOTALL)
    if not markers.search(text):
        return False
    content = render(report) + "\n"
    readme.write_text(markers.sub(lambda found: found[1] + content + found[2], text))
    return True


def unmet(reports: Iterable[Report]) -> Iterator[Check]:
    for report in reports:
        yield from (check for check in report.checks if not check.is_met)
