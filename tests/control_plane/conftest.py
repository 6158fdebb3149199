"""Fixtures of the control plane's tests: databases of their own on the session's Postgres."""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from cell import schema
from control_plane.catalog import Catalog
from control_plane.migrations import migrate
from infra.local.postgres import Postgres


@pytest.fixture
def new_database(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes the name of a database to create; drops all of them afterwards."""
    names: list[str] = []

    def name() -> str:
        names.append(f"test_{uuid.uuid4().hex}")
        return names[-1]

    yield name
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        for database in names:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(drop.format(sql.Identifier(database)))


@pytest.fixture
def catalog_dsn(postgres: Postgres, new_database: Callable[[], str]) -> str:
    """An empty database for a catalog."""
    database = new_database()
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    return postgres.superuser_dsn(database)


@pytest.fixture
async def catalog(catalog_dsn: str) -> AsyncIterator[Catalog]:
    """A migrated catalog with the cells cell-a and cell-b, both open."""
    await migrate(catalog_dsn)
    async with Catalog(catalog_dsn) as catalog:
        await catalog.ensure_cells(
            [
                {
                    "name": name,
                    "zone": "local-1",
                    "api_address": f"127.0.0.1:{port}",
                    "accepts_tenants": True,
                }
                for name, port in (("cell-a", 8101), ("cell-b", 8102))
            ]
        )
        yield catalog


@pytest.fixture
async def owner_dsn(postgres: Postgres, new_database: Callable[[], str]) -> str:
    """A cell's database with its roles and without its schema, as the owner reaches it."""
    database = new_database()
    passwords = {role: postgres.passwords[role] for role in schema.ROLES}
    await schema.create_roles_and_database(postgres.superuser_dsn(), database, passwords)
    return postgres.dsn("cloister_owner", database)
