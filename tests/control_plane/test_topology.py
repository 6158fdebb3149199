"""Topology files, valid and invalid. Method: whole texts in, values or every message out."""

from pathlib import Path

import pytest

from control_plane.errors import TopologyInvalid
from control_plane.postgres_parameters import parse_described
from control_plane.topology import CellSpec, Topology, load_topology, parse_topology
from infra.local.binaries import find_binaries
from infra.local.plan import accepted_parameters

FULL = """\
cells:
  cell-a:
    zone: local-1
    accepts_tenants: false
    port: 8101
    postgres: {shared_buffers: 256MB, max_connections: 60, parameters: {random_page_cost: "1.1"}}
    pool: {min_size: 2, max_size: 8, pgbouncer: null}
    sequencer:
      batch_size: 500
      linger_ms: 2
      queue_commands_max: 1000
      queue_commands_per_tenant_max: 900
      cache_accounts: 700
      async_batch_size: 30
      async_linger_ms: 4
    vacuum:
      ledger_account_balances:
        {autovacuum_vacuum_scale_factor: 0.01, autovacuum_vacuum_threshold: 1000}
    indexes:
      - {name: metadata, table: ledger_transactions, using: gin,
         expression: "metadata jsonb_path_ops", tenant: acme}
  cell-b:
"""

DESCRIBED = "\n".join(
    [
        "work_mem\tuser\tResource Usage / Memory\tINTEGER\t4096\t64\t2147483647\tshort\tlong",
        "random_page_cost\tuser\tQuery Tuning\tREAL\t4\t0\t1.79769e+308\tshort\tlong",
        "log_connections\tbackend\tLogging\tBOOLEAN\tfalse\t\t\tshort\tlong",
        "wal_level\tpostmaster\tWrite-Ahead Log\tENUM\treplica\tminimal,replica\t\tshort\tlong",
    ]
)


def problems(text: str, *, described: str | None = None) -> list[str]:
    accepted = parse_described(described) if described else None
    with pytest.raises(TopologyInvalid) as caught:
        parse_topology(text, "cells.yaml", accepted=accepted)
    return str(caught.value).splitlines()


def cell(body: str) -> str:
    """A file of one cell whose keys begin on line 3."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"cells:\n  cell-a:\n{lines}\n"


def test_every_key_is_read() -> None:
    topology = parse_topology(FULL, "cells.yaml")
    first, second = topology.cells
    assert (first.name, first.zone, first.accepts_tenants, first.port) == (
        "cell-a",
        "local-1",
        False,
        8101,
    )
    assert first.postgres.shared_buffers == "256MB"
    assert first.postgres.max_connections == 60
    assert dict(first.postgres.parameters) == {"random_page_cost": "1.1"}
    assert (first.pool.min_size, first.pool.max_size, first.pool.pgbouncer) == (2, 8, None)
    assert dict(first.vacuum[0].options) == {
        "autovacuum_vacuum_scale_factor": "0.01",
        "autovacuum_vacuum_threshold": "1000",
    }
    assert (first.indexes[0].name, first.indexes[0].tenant, first.indexes[0].line) == (
        "metadata",
        "acme",
        20,
    )
    assert second == CellSpec(name=second.name), "an empty cell has every default"


def test_the_environment_of_a_cell() -> None:
    assert parse_topology(FULL, "cells.yaml").cells[0].environment() == {
        "CLOISTER_CELL_NAME": "cell-a",
        "CLOISTER_CELL_POOL_MIN": "2",
        "CLOISTER_CELL_POOL_MAX": "8",
        "CLOISTER_CELL_SEQUENCER_BATCH_SIZE": "500",
        "CLOISTER_CELL_SEQUENCER_LINGER_MS": "2",
        "CLOISTER_CELL_SEQUENCER_QUEUE_COMMANDS_MAX": "1000",
        "CLOISTER_CELL_SEQUENCER_QUEUE_COMMANDS_PER_TENANT_MAX": "900",
        "CLOISTER_CELL_SEQUENCER_CACHE_ACCOUNTS": "700",
        "CLOISTER_CELL_SEQUENCER_ASYNC_BATCH_SIZE": "30",
        "CLOISTER_CELL_SEQUENCER_ASYNC_LINGER_MS": "4",
    }


INVALID = {
    "not yaml": ("cells:\n  a: [1\n", 3, "not valid YAML", "fix the syntax"),
    "a tab": ("cells:\n\ta: {}\n", 2, "not valid YAML", "fix"),
    "a control character": ("cells:\n  a: {}\n\x00", 3, "forbids", "fix"),
    "two documents": ("cells: {a: {}}\n---\ncells: {}\n", 2, "not valid YAML", "fix"),
    "a list": ("- a\n", 1, "is a list, not a mapping", "key: value"),
    "empty": ("", 1, "there are no cells", "cell-a"),
    "no cells": ("cells: {}\n", 1, "there are no cells", "cell-a"),
    "unknown top key": ("cell:\n  a: {}\n", 1, "no key 'cell'", "did you mean 'cells'?"),
    "unknown key": (cell("zone: z\npols: {}"), 4, "cell-a has no key 'pols'", "'pool'"),
    "unknown nested key": (cell("pool:\n  max: 3"), 4, "no key 'max'", "max_size"),
    "merge key": (cell("<<: {zone: z}"), 3, "is not a name", "rename"),
    "duplicate key": (cell("zone: a\nzone: b"), 4, "'zone' twice (first on line 3)", "keep one"),
    "duplicate cell": ("cells:\n  a: {}\n  a: {}\n", 3, "'a' twice", "keep one"),
    "cell name": ("cells:\n  Cell_A: {}\n", 2, "cannot be a cell's name", "lower-case"),
    "number as zone": (cell("zone: 1"), 3, "zone is '1' (a whole number), and", "quote"),
    "empty zone": (cell("zone:"), 3, "cell-a.zone is empty", "quote the value"),
    "list as zone": (cell("zone: [a]"), 3, "zone is a list, and must be text", "write text"),
    "zone with spaces": (cell("zone: a b"), 3, "cannot be a zone", "lower-case"),
    "text as flag": (cell("accepts_tenants: maybe"), 3, "must be true or false", "true"),
    "cell is text": ("cells:\n  a: b\n", 2, "a is 'b' (text), not a mapping", "key: value"),
    "pool order": (cell("pool:\n  min_size: 9\n  max_size: 8"), 4, "above max_size 8", "raise"),
    "pool zero": (cell("pool: {max_size: 0}"), 3, "outside 1 to 1000", "default is 8"),
    "octal": (cell("pool: {max_size: 010}"), 3, "'010'", "whole number"),
    "sexagesimal": (cell("port: 1:30"), 3, "'1:30'", "whole number"),
    "fraction": (cell("pool: {max_size: 1.5}"), 3, "must be a whole number", "whole number"),
    "flag as number": (cell("pool: {max_size: yes}"), 3, "must be a whole number", "whole"),
    "pgbouncer": (cell("pool: {pgbouncer: here}"), 3, "not host:port", "null"),
    "memory": (cell("postgres: {shared_buffers: 256mb}"), 3, "not a size", "256MB"),
    "memory number": (cell("postgres: {shared_buffers: 256}"), 3, "must be text", "quote"),
    "memory tiny": (cell("postgres: {shared_buffers: 16kB}"), 3, "cannot have 16kB", "128kB"),
    "connections": (
        cell("pool: {max_size: 30}\npostgres: {max_connections: 41}"),
        4,
        "41 connections are too few for a pool of 30",
        "at least 42",
    ),
    "fsync": (
        cell("postgres:\n  parameters:\n    fsync: off"),
        5,
        "fsync is the platform's own: an acknowledged write could be lost",
        "remove it",
    ),
    "port parameter": (cell("postgres: {parameters: {port: 1}}"), 3, "provider", "remove"),
    "capitals": (cell("postgres: {parameters: {FSYNC: off}}"), 3, "platform's own", "remove"),
    "newline": (cell('postgres: {parameters: {a: "b\\nc"}}'), 3, "control char", "retype"),
    "nan": (cell("postgres: {parameters: {a: .nan}}"), 3, "must be", "write"),
    "batch": (
        cell(
            "sequencer: {batch_size: 100, queue_commands_max: 99,\n"
            "  queue_commands_per_tenant_max: 9}"
        ),
        3,
        "batch_size is 100, above queue_commands_max 99",
        "lower batch_size",
    ),
    "table": (cell("vacuum:\n  ledger_entry: {}"), 4, "no table 'ledger_entry'", "ledger_entries"),
    "vacuum key": (
        cell("vacuum:\n  journal:\n    vacuum_threshold: 1"),
        5,
        "no key 'vacuum_threshold'",
        "autovacuum_vacuum_threshold",
    ),
    "vacuum range": (
        cell("vacuum: {journal: {autovacuum_vacuum_scale_factor: 101}}"),
        3,
        "outside 0 to 100",
        "documentation",
    ),
    "vacuum fraction": (
        cell("vacuum: {journal: {autovacuum_vacuum_threshold: 1.5}}"),
        3,
        "not a whole number",
        "fraction",
    ),
    "indexes mapping": (cell("indexes: {name: a}"), 3, "not a list", "start items"),
    "index without table": (
        cell("indexes:\n  - name: a\n    expression: id"),
        4,
        "indexes[0] has no table",
        "add",
    ),
    "index name": (
        cell("indexes: [{name: a-b, table: journal, expression: seq}]"),
        3,
        "'a-b' cannot be an index's name",
        "lower-case",
    ),
    "index twice": (
        cell(
            "indexes:\n- {name: a, table: journal, expression: seq}\n"
            "- {name: a, table: journal, expression: seq}"
        ),
        5,
        "'a' stands twice (first on line 4)",
        "own name",
    ),
    "index method": (
        cell("indexes: [{name: a, table: journal, using: tree, expression: seq}]"),
        3,
        "using is 'tree'",
        "'btree'",
    ),
    "index expression": (
        cell('indexes: [{name: a, table: journal, expression: "seq); DROP TABLE x"}]'),
        3,
        "not an index expression",
        "CREATE INDEX",
    ),
    "index tenant": (
        cell("indexes: [{name: a, table: journal, expression: seq, tenant: A B}]"),
        3,
        "not a tenant's slug",
        "tenants list",
    ),
}


@pytest.mark.parametrize(("text", "line", "reason", "remedy"), INVALID.values(), ids=INVALID.keys())
def test_what_is_invalid_names_its_line(text: str, line: int, reason: str, remedy: str) -> None:
    found = problems(text)
    told, advice = found[0].rsplit("; ", 1) if len(found) == 1 else ("", "")
    assert len(found) == 1, found
    assert told.startswith(f"cells.yaml:{line}: "), found
    assert reason in told
    assert remedy in advice


def test_all_problems_are_reported_together_in_the_order_of_the_file() -> None:
    text = cell("pols: {}\npool: {min_size: 9, max_size: 2}\nzone: 1\nport: 99999")
    lines = [message.split(":")[1] for message in problems(text)]
    assert lines == ["3", "4", "5", "6"]


def test_a_wrong_value_causes_no_second_message_about_itself() -> None:
    text = cell("pool: {max_size: many}\npostgres: {max_connections: 15}")
    assert len(problems(text)) == 1


def test_two_cells_with_one_port() -> None:
    text = "cells:\n  a:\n    port: 8101\n  b:\n    port: 8102\n    operator_port: 8101\n"
    assert problems(text) == [
        "cells.yaml:6: b.operator_port is 8101, which a.port already has;"
        " give each its own, or leave it out"
    ]


def test_parameters_are_checked_against_what_the_server_accepts() -> None:
    def with_parameter(line: str) -> str:
        return cell(f"postgres:\n  parameters:\n    {line}")

    assert (
        "no parameter 'work_men'; did you mean 'work_mem'?"
        in (problems(with_parameter("work_men: 4MB"), described=DESCRIBED)[0])
    )
    assert "32 is below 64" in problems(with_parameter("work_mem: 32"), described=DESCRIBED)[0]
    assert (
        "has no unit of B, kB" in problems(with_parameter("work_mem: 4mb"), described=DESCRIBED)[0]
    )
    assert "not a number" in problems(with_parameter("work_mem: lots"), described=DESCRIBED)[0]
    assert (
        "not on or off" in (problems(with_parameter("log_connections: 7"), described=DESCRIBED)[0])
    )
    topology = parse_topology(
        with_parameter("{work_mem: 32MB, Random_Page_Cost: 1.1, log_connections: on, ext.a: 1}"),
        "cells.yaml",
        accepted=parse_described(DESCRIBED),
    )
    assert dict(topology.cells[0].postgres.parameters) == {
        "work_mem": "32MB",
        "Random_Page_Cost": "1.1",
        "log_connections": "on",
        "ext.a": "1",
    }


def test_a_real_server_describes_its_parameters() -> None:
    accepted = accepted_parameters(find_binaries())
    assert accepted is not None
    text = cell("postgres:\n  parameters: {work_men: 4MB, max_wal_size: 1}")
    with pytest.raises(TopologyInvalid) as caught:
        parse_topology(text, "cells.yaml", accepted=accepted)
    assert str(caught.value).splitlines() == [
        "cells.yaml:4: Postgres has no parameter 'work_men'; did you mean 'work_mem'?",
        "cells.yaml:4: max_wal_size: 1 is below 2; see the Postgres documentation",
    ]


def test_an_aliased_cell_is_read_twice() -> None:
    topology = parse_topology("cells:\n  a: &one {zone: z}\n  b: *one\n", "cells.yaml")
    assert [item.zone for item in topology.cells] == ["z", "z"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TopologyInvalid, match="No such file or directory; name the file"):
        load_topology(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyInvalid, match="not UTF-8"):
        load_topology(tmp_path / "binary.yaml")


def test_a_file_is_named_in_its_problems(tmp_path: Path) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text("cells:\n  a: {zon: x}\n")
    with pytest.raises(TopologyInvalid) as caught:
        load_topology(file)
    assert str(caught.value).startswith(f"{file}:2: ")


def test_a_cell_is_found_by_name() -> None:
    topology: Topology = parse_topology(FULL, "cells.yaml")
    assert topology.cell("cell-b") is topology.cells[1]
    assert topology.cell("cell-c") is None
