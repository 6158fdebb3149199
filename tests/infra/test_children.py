"""What children are given: their own variables, and the way to their database."""

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from control_plane.topology import CellSpec, PoolSpec
from infra.local.binaries import Binaries
from infra.local.children import inherited, reader_dsn
from infra.local.layout import DataDirectory
from infra.local.plan import CellPlan, socket_of
from infra.local.postgres import Postgres

NO_BINARIES = Binaries(directory=Path("/nowhere"), major=18, version="", source="")


def plan_of(pool: PoolSpec) -> CellPlan:
    postgres = Postgres(
        name="x",
        directory=Path("/d"),
        binaries=NO_BINARIES,
        passwords={"cloister_reader": "it's \\ secret"},
    )
    return CellPlan(
        spec=CellSpec(name="x", pool=pool),
        api_port=1,
        operator_port=2,
        operator_token="t",
        postgres=postgres,
    )


def test_a_path_too_long_for_a_socket_is_none() -> None:
    short, long = DataDirectory(root=Path("/d")), DataDirectory(root=Path("/" + "d" * 100))
    assert socket_of(short, "cell-a") == Path("/d/sockets/cell-a.sock")
    assert socket_of(long, "cell-a") is None


@pytest.mark.parametrize(
    ("pgbouncer", "host", "port"),
    [
        (None, "/d/run", "5432"),
        ("127.0.0.1:6432", "127.0.0.1", "6432"),
        ("[::1]:6432", "::1", "6432"),
    ],
)
def test_readers_go_straight_or_through_pgbouncer(
    pgbouncer: str | None, host: str, port: str
) -> None:
    assert conninfo_to_dict(reader_dsn(plan_of(PoolSpec(pgbouncer=pgbouncer)))) == {
        "host": host,
        "port": port,
        "user": "cloister_reader",
        "password": "it's \\ secret",
        "dbname": "cloister",
    }


def test_a_child_inherits_its_own_settings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "CLOISTER_ROUTER_BODY_BYTES_MAX": "1",
        "CLOISTER_CELL_POOL_MAX": "2",
        "CLOISTER_TOKEN": "secret",
        "PGOPTIONS": "-c x=y",
        "LANG": "C",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = inherited("CLOISTER_ROUTER_")
    assert {name: found.get(name) for name in given} == {
        "CLOISTER_ROUTER_BODY_BYTES_MAX": "1",
        "CLOISTER_CELL_POOL_MAX": None,
        "CLOISTER_TOKEN": None,
        "PGOPTIONS": None,
        "LANG": "C",
    }
    assert not [name for name in inherited() if name.startswith(("CLOISTER_", "PG"))]
