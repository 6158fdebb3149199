"""The cell's database schema: roles, numbered migrations, and the version this code knows.

Called by the control plane and by providers (`create_roles_and_database`, `migrate`) and by the
cell at its start (`require_schema`). Migrations are files `sql/NNNN_{pre,post}_what.sql`, each
applied in a database transaction of its own together with its row in `schema_migrations`.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cell.errors import SchemaMismatch

ROLES: Final = (
    "cloister_owner",
    "cloister_writer",
    "cloister_reader",
    "cloister_auditor",
    "cloister_mover",
)
"""Owner of the tables; the sequencer; tenant-scoped reads; read-only audit over all tenants; copies
and deletes a tenant's rows when it moves, and changes its head by guarded functions only."""

PROJECTOR_ROLE: Final = "cloister_projector"
"""Writes the index of events and nothing else. No login: the writer's login becomes it."""

_BYPASS_ROW_SECURITY: Final = frozenset(
    # COPY FROM does not work on a table whose row security the role is subject to.
    {"cloister_writer", "cloister_auditor", "cloister_mover"}
)
_MIGRATION_LOCK: Final = 0x636C6F69
_LOCK_TIMEOUT_MS: Final = 30_000


def _read_migrations() -> tuple[tuple[int, LiteralString], ...]:
    folder = resources.files("cell").joinpath("sql")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return tuple((int(f.name[:4]), f.read_text("utf-8")) for f in files)


MIGRATIONS: Final = _read_migrations()
SCHEMA_VERSION: Final = MIGRATIONS[-1][0]


async def create_roles_and_database(
    superuser_dsn: str, database: str, passwords: Mapping[str, str]
) -> None:
    """Create the roles and the cell's database, or bring them to what is asked; repeatable.

    `passwords` maps each of ROLES to its password. Only they may connect.
    """
    async with await psycopg.AsyncConnection.connect(superuser_dsn, autocommit=True) as connection:
        for role in ROLES:
            await _ensure_role(connection, role, passwords[role])
        await _ensure_projector(connection)
        known = await _exists(
            connection, "SELECT 1 FROM pg_database WHERE datname = %s", (database,)
        )
        if not known:
            create = "CREATE DATABASE {} OWNER cloister_owner ENCODING 'UTF8' TEMPLATE template0"
            await connection.execute(sql.SQL(create).format(sql.Identifier(database)))
        revoke = "REVOKE ALL ON DATABASE {} FROM PUBLIC"
        grant = (
            "GRANT CONNECT, TEMPORARY ON DATABASE {} "
            "TO cloister_writer, cloister_reader, cloister_auditor, cloister_mover"
        )
        for statement in (revoke, grant):
            await connection.execute(sql.SQL(statement).format(sql.Identifier(database)))
    inside = make_conninfo(superuser_dsn, dbname=database)
    async with await psycopg.AsyncConnection.connect(inside, autocommit=True) as connection:
        await connection.execute(_TRUST_CONTAINMENT)


_TRUST_CONTAINMENT: Final = "ALTER FUNCTION pg_catalog.jsonb_contains(jsonb, jsonb) LEAKPROOF"
"""Under row-level security an index is used for operators only that cannot tell what is in rows
which the policy hides. This one tells nothing but its result, but Postgres does not mark it so;
a list filtered by metadata would then look at every row of the tenant."""


async def _ensure_role(connection: psycopg.AsyncConnection[Any], role: str, password: str) -> None:
    known = await _exists(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
    statement = sql.SQL("{verb} ROLE {role} LOGIN {row_security} PASSWORD {password}").format(
        verb=sql.SQL("ALTER" if known else "CREATE"),
        role=sql.Identifier(role),
        row_security=sql.SQL("BYPASSRLS" if role in _BYPASS_ROW_SECURITY else "NOBYPASSRLS"),
        password=sql.Literal(password),
    )
    await connection.execute(statement)


async def _ensure_projector(connection: psycopg.AsyncConnection[Any]) -> None:
    known = await _exists(
        connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", (PROJECTOR_ROLE,)
    )
    statement = sql.SQL("{verb} ROLE {role} NOLOGIN BYPASSRLS").format(
        verb=sql.SQL("ALTER" if known else "CREATE"), role=sql.Identifier(PROJECTOR_ROLE)
    )
    await connection.execute(statement)
    grant = sql.SQL("GRANT {} TO cloister_writer").format(sql.Identifier(PROJECTOR_ROLE))
    await connection.execute(grant)


async def _exists(
    connection: psycopg.AsyncConnection[Any], query: LiteralString, parameters: tuple[str, ...]
) -> bool:
    return await (await connection.execute(query, parameters)).fetchone() is not None


async def migrate(owner_dsn: str) -> int:
    """Apply the migrations that are missing, in order; return the schema version.

    Safe to repeat and to run twice at once (advisory lock). Raises SchemaMismatch when the database
    is already beyond what this code knows.
    """
    dsn = make_conninfo(owner_dsn, options=f"-c lock_timeout={_LOCK_TIMEOUT_MS}")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        await connection.execute("GRANT SELECT ON schema_migrations TO PUBLIC")
        applied = await _applied_version(connection)
        _refuse_newer(applied)
        for version, text in MIGRATIONS:
            if version > (applied or 0):
                async with connection.transaction():
                    await connection.execute(text)
                    await connection.execute(
                        "INSERT INTO schema_migrations (version) VALUES (%s)", (version,)
                    )
    return SCHEMA_VERSION


async def schema_version(dsn: str) -> int | None:
    """The version of the database's schema, or None where no migration was ever applied."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        return await _applied_version(connection)


async def require_schema(connection: psycopg.AsyncConnection[Any]) -> None:
    """Raise SchemaMismatch unless the database holds exactly the schema this code knows."""
    applied = await _applied_version(connection)
    _refuse_newer(applied)
    if applied != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {applied or 'none'}, this cell needs "
            f"{SCHEMA_VERSION}; apply the migrations (the control plane does) and start again"
        )


async def _applied_version(connection: psycopg.AsyncConnection[Any]) -> int | None:
    if not await _exists(
        connection, "SELECT 1 WHERE to_regclass(%s) IS NOT NULL", ("schema_migrations",)
    ):
        return None
    row = await (await connection.execute("SELECT max(version) FROM schema_migrations")).fetchone()
    return row[0] if row else None


def _refuse_newer(applied: int | None) -> None:
    if applied is not None and applied > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {applied}, this code knows {SCHEMA_VERSION}; "
            "run the release that applied it, or a newer one"
        )
