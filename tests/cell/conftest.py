"""Fixtures of the cell's tests: sequencers on real databases, and the audit after every test."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cell.ledger.model import TenantId
from cell.tables import TENANT_TABLES

# Tests are no package: this is how the modules beside them (cell_writing, ledger_audit) are found.
# Those of the router's tests (router_running) serve where a router stands before the cell.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "router"))

from cell_process import Access, CellProcess, running_cell
from cell_writing import Writing, own_tenant, write
from ledger_audit import assert_ledger_holds


@pytest.fixture
def pool_wait_s() -> float:
    """Patient: a busy machine may take seconds to let a connection in."""
    return 60.0


@pytest.fixture(autouse=True)
def patient_reads(pool_wait_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cell.reads.POOL_WAIT_S_MAX", pool_wait_s)
    monkeypatch.setattr("cell.reads.READ_S_MAX", 60.0 + pool_wait_s)


@pytest.fixture(name="assert_ledger_holds", scope="session")
def _assert_ledger_holds() -> Callable[[str], None]:
    """Takes the superuser's DSN of a cell's database; raises unless everything in it is right."""
    return assert_ledger_holds


@pytest.fixture
def cell_database(lasting_cell_database: Any) -> Iterator[Any]:
    """A cell's database, empty but for its writer epoch; when the test is over, it is audited.

    A test that puts rows beside the journal takes them away again.
    """
    yield lasting_cell_database
    dsn = lasting_cell_database.superuser_dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(CUT_OFF)
        tables = [name for (name,) in connection.execute(TABLES_WITH_ROWS)]
        try:
            if tables:
                assert_ledger_holds(dsn)
        finally:
            if tables:
                connection.execute(f"TRUNCATE {', '.join(tables)}")


CUT_OFF = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
TABLES_WITH_ROWS = " UNION ALL ".join(
    f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})"
    for name in ("tenant_heads", "import_progress", *TENANT_TABLES)
)
"""To truncate all of them would take longer than most tests."""


@pytest.fixture
def tenant_id(cell_database: Any) -> TenantId:
    return own_tenant(cell_database.writer_dsn)


@pytest.fixture
async def writer(cell_database: Any) -> AsyncIterator[Writing]:
    """A sequencer with ordinary limits on the test's database."""
    async with write(cell_database.writer_dsn) as running:
        yield running


@pytest.fixture(scope="session")
def served_cell(
    make_cell_database: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellProcess]:
    """A cell process on a database of its own, shared by tests that make tenants of their own."""
    with make_cell_database() as database:
        with running_cell(database, tmp_path_factory.mktemp("cell")) as cell:
            yield cell
        assert_ledger_holds(database.superuser_dsn)


@pytest.fixture
def access(served_cell: CellProcess) -> Access:
    """A fresh tenant of the served cell."""
    return served_cell.new_tenant()


@pytest.fixture
def other_access(served_cell: CellProcess) -> Access:
    """Another tenant of the same cell."""
    return served_cell.new_tenant()
