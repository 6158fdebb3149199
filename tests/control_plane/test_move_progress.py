"""What is noted of a copy, and how it reads. Method: values in, values and sentences out."""

import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from control_plane.move.command import sentence
from control_plane.move.heads import START
from control_plane.move.notes import amounts
from control_plane.move.rows import DONE, Progress
from control_plane.wire import MoveReport


def noted(*, after_s: float = 10.0, **copied: Any) -> dict[str, Any]:
    progress = Progress(snapshot=START, snapshot_at_us=0, table="ledger_entries", **copied)
    return amounts(progress, time.monotonic() - after_s)


def report(**known: Any) -> MoveReport:
    fields = dict.fromkeys(MoveReport.__struct_fields__) | {
        "move_id": UUID(int=1),
        "tenant": "acme",
        "source": "cell-a",
        "target": "cell-b",
        "phase": "copy",
        "differences": [],
        "created_at": datetime.now(UTC),
    }
    return MoveReport(**fields | known)  # type: ignore[arg-type]  # of a dict all are one type


def test_rates_and_what_is_left() -> None:
    found = noted(rows=5_000, bytes=1_000_000, rows_left=20_000)
    assert found["rows_per_s"] == pytest.approx(500, rel=0.05)
    assert found["bytes_per_s"] == pytest.approx(100_000, rel=0.05)
    assert found["copy_eta_s"] == pytest.approx(40, rel=0.05)
    assert (found["rows"], found["rows_left"]) == (5_000, 20_000)


def test_an_attempt_is_not_as_fast_as_all_before_it() -> None:
    """What was there when it went on, it has not copied."""
    found = noted(rows=5_000, rows_before=4_000, bytes=900, bytes_before=400, rows_left=1_000)
    assert found["rows_per_s"] == pytest.approx(100, rel=0.05)
    assert found["bytes_per_s"] == pytest.approx(50, rel=0.05)
    assert found["copy_eta_s"] == pytest.approx(10, rel=0.05)


def test_what_is_not_known_is_not_said() -> None:
    assert noted(rows=0, rows_left=9)["copy_eta_s"] is None
    assert noted(rows=9)["copy_eta_s"] is None
    done = Progress(snapshot=START, snapshot_at_us=0, table=DONE, rows=9, rows_left=0)
    assert amounts(done, time.monotonic() - 3)["copy_eta_s"] == 0.0


def test_a_move_in_one_line() -> None:
    assert sentence(report(phase="planned")) == "acme: cell-a -> cell-b: planned"
    copying = report(rows=5_000, rows_per_s=500.0, bytes_per_s=2.5e6, eta_s=240.0, rows_left=9)
    assert sentence(copying) == (
        "acme: cell-a -> cell-b: copy, 5,000 rows, 500 rows/s, 2.5 MB/s, copied in about 4 min"
    )
    following = report(phase="follow", rows=5_000, sequences_behind=1_234)
    assert sentence(following).endswith("follow, 5,000 rows, 1,234 sequences behind")
    paused = report(phase="can be rolled back", decision="commit", pause_ms=41.6)
    assert sentence(paused).endswith("can be rolled back, writes paused for 42 ms")
    stopped = report(decision="abort", reason="rows differ", differences=["a row", "another"])
    assert sentence(stopped).endswith("copy, rows differ, 2 rows differ: a row")
