"""What is found when tenants are reconciled, by the command and on the schedule.

Method: who owns a tenant is decided by a pure function, shown in tables; all else is the command
against a control plane of its own process, over two real databases in which something is wrong.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from cell_writing import execute, own_tenant, rows

from control_plane.client import OperatorClient
from control_plane.move.heads import START, Head, Heading, HeadState
from control_plane.move.ownership import Presence, ownership_problems
from control_plane.move.plan import Move
from control_plane.routing import CellName, Epoch, Placement
from control_plane.wire import Reconciliation

A, B, C = CellName("cell-a"), CellName("cell-b"), CellName("cell-c")
AT_A = Placement(A, Epoch(2))
MOVE = UUID(int=1)
OTHER_MOVE = UUID(int=2)
NOTHING = Presence(head=None, has_rows=False)


def presence(
    state: str, epoch: int = 2, hand: UUID | None = None, *, has_rows: bool = True
) -> Presence:
    heading = Heading(HeadState(state), Epoch(epoch), hand)
    return Presence(head=Head(heading=heading, position=START), has_rows=has_rows)


OWNED = presence("owned")
TOMBSTONE = presence("moved", has_rows=False)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({A: OWNED, B: NOTHING, C: TOMBSTONE}, None),
        ({A: NOTHING}, "cell-a has no head of the tenant, which is placed there"),
        ({A: presence("owned", 1)}, "cell-a has it owned at epoch 1, and not owned at 2"),
        ({A: presence("fenced")}, "cell-a has it fenced at epoch 2, and not owned at 2"),
        ({A: presence("owned", hand=MOVE)}, f"cell-a is in the hand of move {MOVE}"),
        ({A: OWNED, B: presence("ready", 3)}, "cell-b has it ready at epoch 3"),
        ({A: OWNED, B: presence("moved")}, "cell-b has rows of the tenant"),
        ({A: OWNED, B: Presence(head=None, has_rows=True)}, "cell-b has rows of the tenant"),
        ({A: OWNED, B: presence("moved", hand=MOVE)}, f"cell-b is in the hand of move {MOVE}"),
        ({A: OWNED, C: OWNED, B: NOTHING}, "2 cells own it: cell-a, cell-c"),
    ],
)
def test_a_tenant_that_rests(found: dict[CellName, Presence], problem: str | None) -> None:
    problems = ownership_problems(AT_A, None, found)
    assert (problems == []) if problem is None else problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("at_source", "at_target", "elsewhere", "problem"),
    [
        (presence("owned", 2, MOVE), presence("importing", 3, MOVE), TOMBSTONE, None),
        (presence("fenced", 3, MOVE), presence("ready", 3, MOVE), NOTHING, None),
        (presence("owned", 2), NOTHING, NOTHING, None),
        (presence("owned", 2, OTHER_MOVE), NOTHING, NOTHING, f"in the hand of move {OTHER_MOVE}"),
        (
            presence("owned", 2, MOVE),
            presence("owned", 3, MOVE),
            NOTHING,
            "2 cells own it: cell-a, cell-b",
        ),
        (presence("owned", 2, MOVE), NOTHING, OWNED, "2 cells own it: cell-a, cell-c"),
        (presence("owned", 2, MOVE), NOTHING, presence("moved"), "cell-c has rows"),
    ],
)
def test_a_tenant_that_moves(
    at_source: Presence, at_target: Presence, elsewhere: Presence, problem: str | None
) -> None:
    move = Move(
        move_id=MOVE,
        tenant_id=uuid4(),
        source=A,
        target=B,
        epoch_old=Epoch(2),
        epoch_new=Epoch(3),
    )
    problems = ownership_problems(AT_A, move, {A: at_source, B: at_target, C: elsewhere})
    assert (problems == []) if problem is None else problem in problems[0]


def test_a_tenant_and_a_cell_are_reconciled(served: Any) -> None:
    tenants = served.create("acme", "beta", "gamma")
    served.create("elsewhere", cell="cell-b")
    served.start()
    (found,) = served.parsed("reconcile", "acme")
    assert found == {
        "tenant": "acme",
        "cell": "cell-a",
        "ok": True,
        "last_seq": 6,
        "shadow": None,
        "problems": [],
    }
    assert served.run("reconcile", "acme").stdout == "agrees: acme on cell-a at 6\n"

    # Something is wrong with one, in the ledger and in the other cell; it is named, and alone.
    account = served.damage("cell-a", tenants["beta"])
    own_tenant(served.databases["cell-b"].writer_dsn, tenants["beta"])
    listed = served.parsed("reconcile", "--cell", "cell-a", expected=1)
    assert [(each["tenant"], each["ok"]) for each in listed] == [
        ("acme", True),
        ("beta", False),
        ("gamma", True),
    ]
    problems = "\n".join(listed[1]["problems"])
    assert account in problems
    assert "2 cells own it: cell-a, cell-b" in problems
    text = served.run("reconcile", "--cell", "cell-a", expected=1).stdout
    assert "agrees: gamma on cell-a" in text
    assert "DIFFERS: beta on cell-a" in text
    assert "  2 cells own it" in text
    stored = rows(
        served.catalog_dsn,
        "SELECT slug, problems <> '[]' FROM reconciliations JOIN tenants USING (organization_id)"
        " ORDER BY slug",
    )
    assert stored == [("acme", False), ("beta", True), ("gamma", False)]


def test_one_that_cannot_be_looked_at_does_not_hide_the_others(served: Any) -> None:
    tenants = served.create("acme", "broken", "gamma")
    served.create_unplaced("half-made")
    served.start()
    # Its cell has no head of it: there is nothing to verify.
    execute(
        served.databases["cell-a"].superuser_dsn,
        "DELETE FROM tenant_heads WHERE tenant_id = %s",
        tenants["broken"],
    )
    listed = served.parsed("reconcile", "--cell", "cell-a", expected=1)
    by_name = {each["tenant"]: each for each in listed}
    assert by_name.keys() == {"acme", "broken", "gamma", "half-made"}
    assert by_name["acme"]["ok"] and by_name["gamma"]["ok"]
    assert by_name["half-made"]["last_seq"] is None
    assert by_name["half-made"]["problems"] == [
        "not reconciled: tenant 'half-made' is not placed yet"
    ]
    assert not by_name["broken"]["ok"]
    text = served.run("reconcile", "--cell", "cell-a", expected=1).stdout
    assert "NOT LOOKED AT: half-made on cell-a\n  not reconciled: tenant 'half-made'" in text
    assert "agrees: gamma" in text
    # Asked for by name, it is a refusal like any other.
    refused = served.run("reconcile", "half-made", expected=1)
    assert (refused.stdout, "not placed yet" in refused.stderr) == ("", True)


def test_what_was_found_is_shown_when_the_control_plane_goes_away(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.create("acme", "beta")
    served.start()
    reconcile = OperatorClient.reconcile

    def reconcile_and_end(client: OperatorClient, slug: str) -> Reconciliation:
        found = reconcile(client, slug)
        served.process.end()
        return found

    monkeypatch.setattr(OperatorClient, "reconcile", reconcile_and_end)
    cut = served.run("reconcile", "--cell", "cell-a", expected=1)
    assert cut.stdout == "agrees: acme on cell-a at 6\n"
    assert "error: no control plane answers" in cut.stderr


def test_what_is_not_there_and_what_is_not_asked(served: Any) -> None:
    served.start()
    assert served.parsed("reconcile", "--cell", "cell-b") == []
    assert "no tenant" in served.run("reconcile", "nobody", expected=1).stderr
    assert "no cell 'cell-z'" in served.run("reconcile", "--cell", "cell-z", expected=1).stderr
    served.run("reconcile", expected=2)
    served.run("reconcile", "acme", "--cell", "cell-a", expected=2)


def test_the_shadow_of_a_move_is_compared(served: Any) -> None:
    """While it can be rolled back, both cells hold the rows."""
    tenants = served.create("acme")
    served.start()
    moved = served.lines("move", "acme", "cell-b", "--max-pause-ms", "60000")[-1]
    assert moved["phase"] == "can be rolled back"
    (found,) = served.parsed("reconcile", "acme")
    assert (found["ok"], found["cell"], found["shadow"]) == (True, "cell-b", "cell-a")
    assert "and its shadow on cell-a" in served.run("reconcile", "acme").stdout
    served.damage("cell-a", tenants["acme"])
    (found,) = served.parsed("reconcile", "acme", expected=1)
    assert found["problems"][0].startswith("shadow on cell-a: ledger_account_balances, only at")
    # The tenant itself is well, and so it is once the shadow is gone.
    served.run("moves", "finish", moved["move_id"])
    (found,) = served.parsed("reconcile", "acme")
    assert (found["shadow"], found["problems"]) == (None, [])


def test_every_tenant_has_its_turn_on_the_schedule(served: Any) -> None:
    """One that cannot be reconciled is noted, and does not take the turn of the others."""
    tenants = served.create("acme", "broken", "damaged", "fresh")
    old = datetime.now(UTC) - timedelta(days=2)
    served.damage("cell-a", tenants["damaged"])
    execute(
        served.databases["cell-a"].superuser_dsn,
        "DELETE FROM tenant_heads WHERE tenant_id = %s",
        tenants["broken"],
    )
    execute(served.catalog_dsn, "UPDATE tenants SET created_at = %s WHERE slug <> 'fresh'", old)
    served.start()
    found: dict[str, list[str]] = {}

    def are_all_noted() -> bool:
        query = "SELECT slug, problems FROM reconciliations JOIN tenants USING (organization_id)"
        found.update(rows(served.catalog_dsn, query))
        return len(found) >= 3

    served.process.wait_until(are_all_noted)
    assert found["acme"] == []
    assert any("balance" in problem for problem in found["damaged"])
    assert found["broken"] != []
    # It was made less than a day ago, and who has had a turn waits for the next day.
    assert "fresh" not in found
