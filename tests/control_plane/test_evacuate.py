"""`cloister evacuate`.

Method: what is decided from one look is pure, and shown in tables; all else is the command against
a control plane of its own process, whose moves between two real databases are held up, spoilt or
interrupted where the command says that it has come so far.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from cell_writing import execute

from control_plane.client import OperatorClient
from control_plane.errors import NoOpenCell
from control_plane.move import evacuate
from control_plane.move.evacuate import (
    WAIT_FOR_PAUSE_S_MAX,
    Evacuation,
    Running,
    emptiest,
    eta_s,
    time_left,
    why_it_waits,
)
from control_plane.move.heads import HeadState
from control_plane.wire import WAITS_FOR_SHORT_PAUSE, CellReport, MoveReport

PATIENT = ("--max-pause-ms", "60000", "--rollback-window", "0", "--pause", "0")
TO_B = ("evacuate", "cell-a", "--to", "cell-b", *PATIENT)
ONE_BY_ONE = (*TO_B, "--max-parallel", "1")


def report(phase: str, behind: int | None = None, **known: Any) -> MoveReport:
    fields = dict.fromkeys(MoveReport.__struct_fields__) | {
        "move_id": UUID(int=1),
        "phase": phase,
        "sequences_behind": behind,
        "differences": [],
        "created_at": datetime.now(UTC),
    }
    return MoveReport(**fields | known)  # type: ignore[arg-type]  # of a dict all are one type


def cell(name: str, tenants: int, **known: Any) -> CellReport:
    fields = dict.fromkeys(CellReport.__struct_fields__) | {
        "name": name,
        "tenants": tenants,
        "healthy": True,
        "accepts_tenants": True,
    }
    return CellReport(**fields | known)  # type: ignore[arg-type]


def waited_s(*reports: MoveReport, every_s: float = 0.5) -> float:
    running = Running("acme", UUID(int=1), looked_s=0.0)
    for turn, each in enumerate(reports, 1):
        running.look(each, turn * every_s)
    return running.waited_s


def test_what_counts_as_waiting() -> None:
    for phase in ("planned", "prepare", "copy", "compare", "clean up"):
        assert waited_s(*[report(phase)] * 1_000) == 0, "it takes as long as the tenant is large"
    for phase in ("follow", WAITS_FOR_SHORT_PAUSE, "waiting"):
        assert waited_s(*[report(phase)] * 4) == 2.0
    # Over all its phases: none of them lasts for long by itself.
    turns = [report("follow"), report(WAITS_FOR_SHORT_PAUSE), report("compare")] * 90
    assert waited_s(*turns) == 90 > WAIT_FOR_PAUSE_S_MAX
    # Who serves is settled.
    assert waited_s(report("recompute", decision="commit")) == 0


def test_a_move_that_comes_closer_does_not_wait() -> None:
    closer = [report("follow", behind) for behind in (9_000, 8_000, 6_000, 4_000)]
    assert waited_s(*closer) == 0
    assert waited_s(*closer, *closer) == 2.0
    # What is written as fast as it is followed comes no closer, whatever the last digits say.
    assert waited_s(*(report("follow", 9_000 - n) for n in range(101))) == 50


def test_a_control_plane_that_was_away_is_not_waiting() -> None:
    assert waited_s(report("follow"), every_s=50.0) == evacuate.LOOK_S_MAX


def test_why_a_move_waits() -> None:
    assert why_it_waits(report(WAITS_FOR_SHORT_PAUSE, reason="a long one")) == "a long one"
    assert why_it_waits(report("follow", 1_234)).startswith("1,234 sequences behind")
    assert why_it_waits(report("follow")) == "it is in phase 'follow' for long"


def test_the_emptiest_open_cell_takes_the_next() -> None:
    cells = [cell("a", 0), cell("b", 5), cell("c", 3), cell("d", 3)]
    assert emptiest(cells, but="a") == "c"
    closed = [cell("a", 0), cell("b", 0, healthy=False), cell("c", 0, accepts_tenants=False)]
    with pytest.raises(NoOpenCell, match="--to"):
        emptiest(closed, but="a")


def test_how_long_it_takes() -> None:
    assert eta_s(moved=0, left=5, elapsed_s=9.0) is None
    assert eta_s(moved=2, left=5, elapsed_s=9.0) == 22.5
    assert eta_s(moved=2, left=0, elapsed_s=9.0) == 0.0
    words = {None: "time left not known yet", 12.4: "about 12 s left", 89: "about 89 s left"}
    words |= {90: "about 2 min left", 3_600: "about 60 min left", 9_000: "about 2 h left"}
    assert {seconds: time_left(seconds) for seconds in words} == words


# The command ------------------------------------------------------------------------------------


@contextmanager
def once(monkeypatch: pytest.MonkeyPatch, event: str, act: Callable[[], Any]) -> Iterator[None]:
    """In the first moment in which the command tells of the event."""
    tell, left = Evacuation._tell, itertools.count()

    def telling(own: Evacuation, told: str, *rest: Any) -> None:
        tell(own, told, *rest)
        if told == event and next(left) == 0:
            act()

    with monkeypatch.context() as patched:
        patched.setattr(Evacuation, "_tell", telling)
        yield


def arm(served: Any, point: str, wait_ms: int) -> None:
    unseen = served.fail_points / "being armed"
    unseen.write_text(f"wait {wait_ms}")
    unseen.rename(served.fail_points / point)


@contextmanager
def fence_refused(served: Any, tenant_id: str) -> Iterator[Callable[[], None]]:
    """Of the first move that copies, which must be this tenant's: its head is held from then on."""
    copying = served.fail_points / "while copying.reached"
    let_go = threading.Event()
    arm(served, "while copying", 2_000)

    def hold() -> None:
        served.process.wait_until(copying.exists)
        with served.unfenced("cell-a", tenant_id) as release:
            let_go.wait(120)
            release()

    holding = threading.Thread(target=hold, name="a batch that does not end")
    holding.start()
    try:
        yield let_go.set
    finally:
        let_go.set()
        holding.join(120)


def events(told: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(line["event"], line.get("tenant")) for line in told]


def test_a_tenant_that_waits_is_left_for_later_and_come_back_to(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = served.create("a-busy", "b-calm")
    served.start()
    monkeypatch.setattr(evacuate, "WAIT_FOR_PAUSE_S_MAX", 1.0)
    with (
        fence_refused(served, tenants["a-busy"]) as let_go,
        once(monkeypatch, "later", let_go),
    ):
        told = served.lines(*ONE_BY_ONE)
    assert events(told) == [
        ("moving", "a-busy"),
        ("later", "a-busy"),
        ("moving", "b-calm"),
        ("moved", "b-calm"),
        ("moving", "a-busy"),
        ("moved", "a-busy"),
        ("done", None),
    ]
    assert told[1]["reason"] == "a batch took more than 80 ms"
    assert ["eta_s" in line for line in told] == [False, False, False, True, True, True, True]
    assert (told[-1]["moved"], told[-1]["left"], told[-1]["eta_s"]) == (2, 0, 0.0)
    assert {served.cell_of(slug) for slug in tenants} == {"cell-b"}


def test_who_waits_again_and_again_is_left_with_the_reason(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.create("acme")
    served.start()
    monkeypatch.setattr(evacuate, "WAIT_FOR_PAUSE_S_MAX", 2.0)
    monkeypatch.setattr(evacuate, "ATTEMPTS_MAX", 2)
    left = served.run("evacuate", "cell-a", "--max-pause-ms", "1", "--pause", "0", expected=1)
    assert left.stderr.count("acme is left for later: a pause of ") == 2
    assert "error: 1 tenants are left on cell-a\n  acme: a pause of " in left.stderr
    assert served.cell_of("acme") == "cell-a"


def test_the_first_failed_verification_stops_it(served: Any) -> None:
    """What comes to the other database is not what left this one."""
    tenants = served.create("a-spoilt", "b-calm")
    served.start()
    dsn = served.databases["cell-b"].superuser_dsn
    execute(
        dsn,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.posted_debits := NEW.posted_debits + 1; RETURN NEW; END'",
    )
    execute(
        dsn,
        "CREATE TRIGGER spoil BEFORE INSERT ON ledger_account_balances"
        " FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    try:
        done = served.run(*ONE_BY_ONE, "--json", expected=1)
    finally:
        execute(dsn, "DROP FUNCTION spoil CASCADE")
    told = [line.split('"event":"')[1].split('"')[0] for line in done.stdout.splitlines()]
    assert told == ["moving", "stopped"]
    assert "ledger_account_balances, only at the" in done.stdout
    assert "2 tenants are left on cell-a\n  a verification failed, a-spoilt: " in done.stderr
    assert {served.cell_of(slug) for slug in tenants} == {"cell-a"}
    assert served.state("cell-a", tenants["a-spoilt"]) is HeadState.OWNED
    # Run again, it goes on.
    assert events(served.lines(*TO_B))[-1] == ("done", None)


def times(served: Any) -> list[tuple[str, str]]:
    """From when to when each was moved, in the order of the beginnings."""
    return sorted(
        (each["created_at"], each["decided_at"])
        for each in served.parsed("moves", "list")
        if each["decision"] == "commit"
    )


def test_so_many_at_a_time_and_so_long_between_them(served: Any) -> None:
    slugs = [f"tenant-{number}" for number in range(3)]
    served.create(*slugs)
    served.start()
    arm(served, "while copying", 1_500)
    arm_of_one = served.fail_points / "while copying.reached"
    # The first one is held up; of the others one goes beside it, and then the next.
    served.run(*TO_B, "--max-parallel", "2")
    assert arm_of_one.exists()
    first, second, third = times(served)
    assert second[0] < min(first[1], second[1]) < third[0]

    served.create("there", "too")
    done = served.run(*TO_B[:-1], "1.2", "--max-parallel", "1")
    *_, there, too = times(served)
    between = datetime.fromisoformat(too[0]) - datetime.fromisoformat(there[0])
    assert between.total_seconds() >= 1.2
    assert done.stdout == "cell-a holds no tenants any more; 2 were moved.\n"
    assert "there is on cell-b, paused for " in done.stderr
    assert "; 1 to go, about " in done.stderr
    refused = served.run(*TO_B, "--max-parallel", "5", expected=2).stderr
    assert "works on 4 moves at a time" in refused


def test_without_a_target_it_is_the_emptiest_and_there_must_be_one(
    served: Any, other_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.create("acme")
    served.start()
    other_cell.unhealthy = "it is ill"
    served.process.wait_until(lambda: not served.parsed("status")["healthy"])
    monkeypatch.setattr(evacuate, "AWAY_S_MAX", 0.5)
    refused = served.run("evacuate", "cell-a", *PATIENT, expected=1)
    assert "waiting, for 0 s at most: no other cell is healthy" in refused.stderr
    assert "error: no other cell is healthy and takes tenants: name one with --to" in refused.stderr

    def recover() -> None:
        other_cell.unhealthy = None

    monkeypatch.setattr(evacuate, "AWAY_S_MAX", 60.0)
    with once(monkeypatch, "waiting", recover):
        told = served.lines("evacuate", "cell-a", *PATIENT)
    assert [line["event"] for line in told] == ["waiting", "moving", "moved", "done"]
    assert told[1]["cell"] == "cell-b"
    for wrong, reason in (
        (("cell-z",), "there is no cell 'cell-z'"),
        (("cell-a", "--to", "cell-z"), "there is no cell 'cell-z'"),
        (("cell-a", "--to", "cell-a"), "name another one"),
    ):
        assert reason in served.run("evacuate", *wrong, expected=1).stderr


def test_a_control_plane_that_restarts_is_waited_for(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = served.create("acme", "beta")
    served.start()
    with (
        once(monkeypatch, "moving", served.process.end),
        once(monkeypatch, "waiting", served.process.start),
    ):
        told = served.lines(*ONE_BY_ONE)
    told_of = [line["event"] for line in told if line["event"] != "waiting"]
    assert told_of == ["moving", "moved", "moving", "moved", "done"]
    (away, *_) = [line for line in told if line["event"] == "waiting"]
    assert "no control plane answers" in away["reason"]
    assert {served.cell_of(slug) for slug in tenants} == {"cell-b"}

    served.create("gamma")
    monkeypatch.setattr(evacuate, "AWAY_S_MAX", 0.5)
    with once(monkeypatch, "moving", served.process.end):
        assert "no control plane answers" in served.run(*TO_B, expected=1).stderr


def test_a_move_that_is_decided_before_its_abort_is_looked_at_again(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = served.create("acme")
    served.start()
    monkeypatch.setattr(evacuate, "WAIT_FOR_PAUSE_S_MAX", 1.0)
    abort_move, asked = OperatorClient.abort_move, []
    with fence_refused(served, tenants["acme"]) as let_go:

        def abort_too_late(client: OperatorClient, move_id: UUID) -> MoveReport:
            asked.append(move_id)
            let_go()
            deadline_s = time.monotonic() + 60
            while client.move(move_id).decision is None:
                assert time.monotonic() < deadline_s
            return abort_move(client, move_id)

        monkeypatch.setattr(OperatorClient, "abort_move", abort_too_late)
        told = served.lines(*TO_B)
    assert len(asked) == 1
    assert [line["event"] for line in told] == ["moving", "moved", "done"]
