"""Fixtures for every suite: one real Postgres for the session, a fresh cell database per test."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings

from cell.schema import ROLES, create_roles_and_database, migrate
from control_plane.topology import PostgresSpec
from infra.local.binaries import find_binaries
from infra.local.postgres import Postgres

# How long an example takes says something of the machine, not of the code.
settings.register_profile("cloister", deadline=None, print_blob=True)
settings.load_profile("cloister")

# What a script runs in the background ignores Ctrl-C, and so would all that the tests start, to be
# stopped by it.
signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = "cell_template"

BEGIN_UNTIL = time.time() + float(os.environ.get("CLOISTER_TESTS_BEGIN_WITHIN_S", "inf"))
"""Unix seconds; no test is begun later: whoever gives it would rather know less than wait."""

FOLDERS = ("cell", "router", "control_plane", "infra", "e2e", "benchmarks")
"""From the parts to the whole."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file of each part in turn: a run that is cut short has then seen something of all."""
    root = Path(__file__).parent
    files = {item.path: item.path.relative_to(root).parts[0] for item in items}
    numbers = dict.fromkeys(files.values(), 0)
    places: dict[Path, tuple[int, int]] = {}
    for path, folder in files.items():
        numbers[folder] += 1
        places[path] = (numbers[folder], FOLDERS.index(folder) if folder in FOLDERS else -1)
    items.sort(key=lambda item: places[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    is_repeat = getattr(item, "execution_count", 1) > 1
    if not is_repeat and time.time() > BEGIN_UNTIL:
        pytest.skip("not begun within CLOISTER_TESTS_BEGIN_WITHIN_S")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDatabase:
    """A cell's own database with its roles and the current schema, and nothing in it."""

    name: str
    owner_dsn: str
    writer_dsn: str
    reader_dsn: str
    auditor_dsn: str
    mover_dsn: str
    superuser_dsn: str
    """The superuser, in this database."""


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A running embedded Postgres with its durability left on; databases are the tests' own."""
    instance = Postgres(
        name="tests",
        directory=tmp_path_factory.mktemp("postgres") / "instance",
        binaries=find_binaries(),
        roles=ROLES,
        sizing=PostgresSpec(shared_buffers="64MB", max_connections=100),
    )
    instance.initialize()
    instance.start()
    yield instance
    instance.stop()


@pytest.fixture(scope="session")
def cell_template(postgres: Postgres) -> str:
    """The name of a migrated database to make others from; nobody stays connected to it."""
    asyncio.run(create_roles_and_database(postgres.superuser_dsn(), TEMPLATE, postgres.passwords))
    asyncio.run(migrate(postgres.dsn("cloister_owner", TEMPLATE)))
    return TEMPLATE


DATABASE_NUMBERS = itertools.count(1)


@pytest.fixture
def cell_database(postgres: Postgres, cell_template: str) -> Iterator[CellDatabase]:
    """A fresh database of a cell, dropped afterwards with whoever is still connected to it."""
    with fresh_cell_database(postgres, cell_template) as database:
        yield database


@pytest.fixture(scope="session")
def lasting_cell_database(postgres: Postgres, cell_template: str) -> Iterator[CellDatabase]:
    """A database of a cell for suites that empty it themselves: a fresh one takes half a second."""
    with fresh_cell_database(postgres, cell_template) as database:
        yield database


@pytest.fixture(scope="session")
def make_cell_database(
    postgres: Postgres, cell_template: str
) -> Callable[[], AbstractContextManager[CellDatabase]]:
    """Makes databases of a cell that live as long as their `with` block."""
    return partial(fresh_cell_database, postgres, cell_template)


@contextmanager
def fresh_cell_database(postgres: Postgres, cell_template: str) -> Iterator[CellDatabase]:
    name = f"cell_{os.getpid()}_{next(DATABASE_NUMBERS)}"
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{cell_template}" OWNER {ROLES[0]}')
        # A database's own privileges are not copied from its template.
        connection.execute(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
        connection.execute(
            f'GRANT CONNECT, TEMPORARY ON DATABASE "{name}" TO {", ".join(ROLES[1:])}'
        )
    yield CellDatabase(
        name=name,
        owner_dsn=postgres.dsn("cloister_owner", name),
        writer_dsn=postgres.dsn("cloister_writer", name),
        reader_dsn=postgres.dsn("cloister_reader", name),
        auditor_dsn=postgres.dsn("cloister_auditor", name),
        mover_dsn=postgres.dsn("cloister_mover", name),
        superuser_dsn=postgres.superuser_dsn(name),
    )
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
