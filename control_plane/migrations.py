"""The catalog's schema: numbered migrations, applied in order and once.

Files are `sql/NNNN_{pre,post}_what.sql`. All missing ones are applied in one database transaction
under an advisory lock, so two control planes that start together apply them once.
"""

from importlib import resources
from typing import LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from control_plane.errors import CatalogTooNew, CatalogUnavailable

LOCK_MS_MAX = 30_000
CONNECT_S_MAX = 5
_MIGRATION_LOCK = 0x636C_6F69_7363_6174
"""Names our advisory lock in the catalog's database; any constant would do."""


def read_migrations() -> tuple[tuple[int, LiteralString], ...]:
    """Number and text of every migration this release knows, in order."""
    folder = resources.files("control_plane") / "sql"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    # A file of our own package is as literal as a constant.
    return tuple((int(file.name[:4]), file.read_text("utf-8")) for file in files)


MIGRATIONS = read_migrations()
CATALOG_VERSION = MIGRATIONS[-1][0]

LOCK: LiteralString = "SELECT pg_advisory_xact_lock(%s)"
CREATE_LIST: LiteralString = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version int PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
APPLIED: LiteralString = "SELECT coalesce(max(version), 0) FROM schema_migrations"
RECORD: LiteralString = "INSERT INTO schema_migrations (version) VALUES (%s)"


async def migrate(dsn: str) -> int:
    """Applies what is missing; returns the catalog's version.

    Raises CatalogTooNew, having changed nothing, if a newer release wrote the catalog, and
    CatalogUnavailable if it cannot be reached or is locked for too long.
    """
    bounded = make_conninfo(
        dsn, options=f"-c lock_timeout={LOCK_MS_MAX}", connect_timeout=CONNECT_S_MAX
    )
    try:
        async with await AsyncConnection.connect(bounded) as connection:
            await connection.execute(LOCK, (_MIGRATION_LOCK,))
            await connection.execute(CREATE_LIST)
            row = await (await connection.execute(APPLIED)).fetchone()
            assert row is not None
            _refuse_newer(row[0])
            for version, text in MIGRATIONS:
                if version > row[0]:
                    await connection.execute(text)
                    await connection.execute(RECORD, (version,))
    except (psycopg.OperationalError, psycopg.errors.LockNotAvailable) as exc:
        raise CatalogUnavailable(f"the catalog cannot be migrated now: {exc}") from exc
    return CATALOG_VERSION


def _refuse_newer(applied: int) -> None:
    if applied > CATALOG_VERSION:
        raise CatalogTooNew(
            f"the catalog has version {applied}, this release knows {CATALOG_VERSION};"
            " run the release that wrote it, or a newer one"
        )
