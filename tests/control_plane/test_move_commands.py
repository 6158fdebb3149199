"""`cloister move` and `cloister moves`, as text and as JSON.

Method: the commands against a control plane of its own process, whose moves between two real
databases are held up where they are to be looked at.
"""

from typing import Any
from uuid import UUID

from control_plane.client import OperatorClient
from control_plane.move.heads import HeadState

PATIENT = ("--max-pause-ms", "60000")


def moved(served: Any, slug: str, cell: str, *options: str) -> dict[str, Any]:
    report: dict[str, Any] = served.lines("move", slug, cell, *PATIENT, *options)[-1]
    assert report["decision"] == "commit"
    return report


def test_a_move_is_rolled_back(served: Any) -> None:
    tenants = served.create("acme")
    served.start()
    there = moved(served, "acme", "cell-b")
    shown = served.run("moves", "rollback", there["move_id"])
    assert "acme: cell-b -> cell-a: " in shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[1].startswith("acme: cell-b -> cell-a: can be rolled back, ")
    assert "writes paused for " in lines[1]
    assert lines[2].startswith("moved to cell-a in ")
    assert served.cell_of("acme") == "cell-a"
    assert served.state("cell-a", tenants["acme"]) is HeadState.OWNED
    assert served.state("cell-b", tenants["acme"]) is HeadState.MOVED

    back, first = served.parsed("moves", "list")
    assert (back["follows"], back["source"], back["rows"]) == (there["move_id"], "cell-b", None)
    assert (first["phase"], first["decision"]) == ("rolled back", "commit")
    shown = served.run("moves", "show", there["move_id"]).stdout
    assert ", then rolled back" in shown
    # And as JSON, once more in the other direction.
    *_, last = served.lines("moves", "rollback", back["move_id"])
    assert (last["decision"], last["target"], last["follows"]) == (
        "commit",
        "cell-b",
        back["move_id"],
    )
    assert served.cell_of("acme") == "cell-b"
    refused = served.run("moves", "rollback", there["move_id"], expected=1)
    assert "move the tenant there again" in refused.stderr


def begin(served: Any, slug: str) -> dict[str, Any]:
    """Begin a move of the tenant that stands still while it copies; what is known of it then."""
    (served.fail_points / "while copying").write_text("wait 3000")
    with OperatorClient(served.process.url) as client:
        move_id = client.create_move(slug, "cell-b", max_pause_ms=60_000).move_id
    served.process.wait_until((served.fail_points / "while copying.reached").exists)
    shown: dict[str, Any] = served.parsed("moves", "show", str(move_id))
    return shown


def test_a_move_is_aborted(served: Any) -> None:
    tenants = served.create("acme", "beta")
    served.start()
    open_move = begin(served, "acme")
    assert (open_move["tenant"], open_move["phase"]) == ("acme", "copy")
    assert open_move["decision"] is None
    # What is on the way goes to stderr, the end to stdout.
    aborted = served.run("moves", "abort", open_move["move_id"])
    assert "acme: cell-a -> cell-b: copy" in aborted.stderr
    assert "aborted, the tenant stays on cell-a in " in aborted.stdout
    assert "an operator asked for it" in aborted.stdout
    assert served.cell_of("acme") == "cell-a"
    assert served.state("cell-a", tenants["acme"]) is HeadState.OWNED
    refused = served.run("moves", "abort", open_move["move_id"], expected=1)
    assert f"move {open_move['move_id']} is decided already" in refused.stderr
    refused = served.run("moves", "rollback", open_move["move_id"], expected=1)
    assert "was aborted: the tenant never left cell-a" in refused.stderr
    *_, last = served.lines("moves", "abort", begin(served, "beta")["move_id"])
    assert (last["tenant"], last["decision"]) == ("beta", "abort")
    # It can be moved as before.
    assert moved(served, "acme", "cell-b")["target"] == "cell-b"


def test_moves_are_listed_and_shown(served: Any) -> None:
    served.create("acme", "beta")
    served.start()
    assert served.run("moves", "list").stdout.split() == [
        *("move", "tenant", "from", "to", "phase", "rows", "pause", "begun")
    ]
    report = moved(served, "acme", "cell-b")
    other = moved(served, "beta", "cell-b", "--rollback-window", "0")
    assert report["rows_per_s"] > 0 < report["bytes_per_s"]
    assert (report["rows_left"], report["eta_s"]) == (0, None)
    header, *rows = served.run("moves", "list").stdout.splitlines()
    assert header.startswith("move ")
    assert [row.split()[:4] for row in rows] == [
        [other["move_id"], "beta", "cell-a", "cell-b"],
        [report["move_id"], "acme", "cell-a", "cell-b"],
    ]
    assert " commit " in rows[0]
    assert " can be rolled back " in rows[1]
    assert f" {report['pause_ms']:,.0f} ms " in rows[1]
    assert f" {report['rows']} " in rows[1]

    lines = served.run("moves", "show", report["move_id"]).stdout.splitlines()
    assert lines[0] == f"move    {report['move_id']}"
    assert lines[1].startswith(f"acme: cell-a -> cell-b: can be rolled back, {report['rows']} rows")
    assert " rows/s, " in lines[1]
    assert " MB/s, writes paused for " in lines[1]
    assert lines[2].startswith("moved to cell-b in ")
    assert lines[3].endswith(f"it can be undone: cloister moves rollback {report['move_id']}")
    shown = served.parsed("moves", "show", other["move_id"])
    assert (shown["phase"], shown["move_id"]) == ("commit", other["move_id"])
    finished = served.run("moves", "show", other["move_id"]).stdout.splitlines()
    assert len(finished) == 3
    assert "no move" in served.run("moves", "show", str(UUID(int=0)), expected=1).stderr
