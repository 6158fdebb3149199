"""The certificate of a move, as it is checked without a platform."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from cell.tables import COMPARED_TABLES
from control_plane.errors import NotFound
from control_plane.move.certificate import certificate_of, problems_of
from control_plane.move.heads import Position
from control_plane.move.plan import Decision, Move
from control_plane.move.register import MoveRecord
from control_plane.routing import CellName, Epoch

AT = datetime(2026, 11, 22, tzinfo=UTC)
DIGESTS = {name: {"rows": 3, "digest": "1 -2"} for name in COMPARED_TABLES}
BALANCES = {"EUR": ["700", "700"]}
RECORD = MoveRecord(
    move=Move(
        move_id=UUID(int=1),
        tenant_id=UUID(int=9),
        source=CellName("cell-a"),
        target=CellName("cell-b"),
        epoch_old=Epoch(1),
        epoch_new=Epoch(2),
    ),
    slug="acme",
    decision=Decision.COMMIT,
    wants_abort=None,
    phase="commit",
    progress={
        "compared_at": 5,
        "digests": [DIGESTS, DIGESTS],
        "trial_balances": [BALANCES, BALANCES],
        "recomputed": {
            "accounts": 1,
            "entries": 2,
            "transactions": 1,
            "segments": 1,
            "last_seq": 8,
        },
        "pause_ms": 31.5,
    },
    created_at=AT,
    decided_at=AT,
    window_ends_at=None,
    window_is_open=False,
    cut=Position(7, bytes(32)),
    finished_at=AT,
)


def certificate(**progress: Any) -> bytes:
    record = replace(RECORD, progress={**RECORD.progress, **progress})
    return msgspec.json.encode(certificate_of(record))


def test_a_move_that_is_proved() -> None:
    assert problems_of(certificate()) == []


@pytest.mark.parametrize(
    ("progress", "problem"),
    [
        ({"digests": [DIGESTS, DIGESTS | {"journal": {"rows": 2, "digest": "0 0"}}]}, "journal"),
        ({"digests": [{}, {}]}, "ledger_entries was not compared"),
        ({"trial_balances": [BALANCES, {"EUR": ["700", "701"]}]}, "credits of 701"),
        ({"trial_balances": [{}, BALANCES]}, "source and target differ"),
        ({"compared_at": 8}, "beyond the end"),
        ({"recomputed": {**RECORD.progress["recomputed"], "last_seq": 6}}, "before the end"),
    ],
)
def test_what_does_not_prove_it(progress: dict[str, Any], problem: str) -> None:
    problems = problems_of(certificate(**progress))
    assert any(problem in each for each in problems), problems


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (certificate().replace(b'"seq":7', b'"seq":6'), "checksum"),
        (b"{}", "no certificate"),
        (b"\xff", "no certificate"),
        (b'{"tenant":"\xff"}', "no certificate"),
        (b'{"more":' + b"[" * 100_000, "no certificate"),
        (certificate().replace(b'"format":1', b'"format":2'), "format is 2"),
    ],
)
def test_a_file_that_was_changed(content: bytes, problem: str) -> None:
    assert any(problem in each for each in problems_of(content))


@pytest.mark.parametrize(
    "record",
    [
        replace(RECORD, decision=Decision.ABORT),
        replace(RECORD, decision=None, decided_at=None),
        replace(RECORD, progress={}),
    ],
    ids=["aborted", "undecided", "not recomputed"],
)
def test_there_is_none(record: MoveRecord) -> None:
    with pytest.raises(NotFound):
        certificate_of(record)
