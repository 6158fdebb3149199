"""What a benchmark hands back: tables for people, checks against the goals, and the raw runs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.machine import Machine

OUT: Final = Path(__file__).with_name("out")

Progress = Callable[[str], None]
"""Called with one sentence before each run."""

Cell = str | float | int | None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that must be reached."""

    what: str
    value: float
    goal: float
    at_most: bool = False
    """Whether the goal is an upper limit; else it is a lower one."""

    @property
    def is_met(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one benchmark; kept as `out/NAME.json`."""

    name: str
    """As on the command line."""
    quick: bool
    """Short smoke runs: the figures show only that everything works."""
    at: str
    """When it ended, UTC."""
    machine: Machine
    rounds: int | None = None
    """How many its medians are of, where it has rounds."""
    tables: Sequence[Table]
    checks: Sequence[Check]
    skipped: Sequence[str] = ()
    """What could not run here, and why."""
    runs: Sequence[object] = ()
    """Every single run in order, as medians hide what happened."""


def now_utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def store(report: Report) -> Path:
    """Write the report under its name; a quick one under a name that no real one has."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{report.name}{'-quick' if report.quick else ''}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    return path
