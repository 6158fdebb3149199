"""Notices that the cell's database is an older state of itself, such as one restored from a backup.

A number stands in the database and in a file beside it, and is drawn anew in both once a second
while anything is written: an older state of the database has a number that the file does not know.
Such a database has lost what was acknowledged since, and tenants may have moved away meanwhile. So
all that it owns, or was importing, is quarantined, and an operator says what is to become of it
(`cloister cells reclaim`). Asked before the cell becomes the writer, and after every loss of the
connection before anything is written or a read is answered. A state that is a second old is not
told from the present one.

The file comes first: it knows the number that will be there, and the one that may still be.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import psycopg

from cell.errors import SettingsInvalid
from cell.postgres import connection_string, one_line
from cell.schema import require_schema

DRAW_S: Final = 1.0
STATEMENT_MS_MAX: Final = 20_000

log = logging.getLogger("cell.restore")


class Known(msgspec.Struct, frozen=True):
    """The content of the file."""

    tokens: list[UUID]
    """One of these is in the database, unless it is older."""


_READ: Final = """
SELECT token, (pg_current_wal_insert_lsn() - '0/0')::bigint FROM cell_incarnation
"""
_DRAW: Final = "UPDATE cell_incarnation SET token = %s WHERE token = %s"
_QUARANTINE: Final = """
WITH changed AS (
    UPDATE tenant_heads SET state = 'quarantined', move_id = NULL
    WHERE state IN ('owned', 'fenced', 'importing', 'ready') RETURNING tenant_id)
SELECT count(pg_notify('cloister_heads', tenant_id::text)) FROM changed
"""
_COUNT: Final = "SELECT count(*) FROM tenant_heads WHERE state = 'quarantined'"


class RestoreWatch:
    """`open` before the cell becomes the writer; `run` in a task of its own."""

    def __init__(self, writer_dsn: str, file: Path | None) -> None:
        """Without a file nothing is watched."""
        self._dsn = connection_string(writer_dsn, "restore", statement_timeout=STATEMENT_MS_MAX)
        self._file = file
        self._token: UUID | None = None
        """The number in the database, as drawn here last."""
        self._drawing = asyncio.Lock()
        """Two who drew at once could leave a number in the database that is not in the file."""
        self.quarantined = 0
        """Tenants, when that was last counted: at the start, and then while there are any."""

    async def open(self) -> None:
        """Quarantine what a restored database has.

        Raises OperationalError while it is away, SchemaMismatch, and SettingsInvalid where the file
        cannot be used.
        """
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await require_schema(connection)
            async with self._drawing:
                await self._examine(connection)

    async def run(self) -> None:
        """Draw numbers until cancelled."""
        while True:
            try:
                await self._follow()
            except (psycopg.Error, SettingsInvalid, OSError) as error:
                log.warning("restores are not watched for", extra={"error": one_line(error)})
            await asyncio.sleep(DRAW_S)

    async def _follow(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            # What came back may not be what was lost.
            async with self._drawing:
                drawn_at = await self._examine(connection)
            while True:
                await asyncio.sleep(DRAW_S)
                if self.quarantined:
                    self.quarantined = await _count(connection)
                async with self._drawing:
                    token, lsn = await _read(connection)
                    if self._file is None or lsn == drawn_at:
                        continue
                    if token != self._token:
                        raise psycopg.OperationalError("somebody else draws numbers here")
                    await self._draw(connection, self._file, token)
                    drawn_at = (await _read(connection))[1]

    async def _examine(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Quarantine what is older than the file; where the log ends."""
        token, lsn = await _read(connection)
        if self._file is not None:
            known = await asyncio.to_thread(_read_file, self._file)
            if known is not None and token not in known.tokens:
                log.error("the database is older than it was: it was restored")
                await connection.execute(_QUARANTINE)
            # Only now: whoever is killed in between must find out again.
            await self._draw(connection, self._file, token)
        self.quarantined = await _count(connection)
        return lsn

    async def _draw(
        self, connection: psycopg.AsyncConnection[Any], file: Path, token: UUID
    ) -> None:
        drawn = uuid4()
        await asyncio.to_thread(_write_file, file, Known(tokens=[token, drawn]))
        await connection.execute(_DRAW, (drawn, token))
        self._token = drawn


async def _read(connection: psycopg.AsyncConnection[Any]) -> tuple[UUID, int]:
    row = await (await connection.execute(_READ)).fetchone()
    assert row is not None, "the migration put one there"
    return row[0], row[1]


async def _count(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute(_COUNT)).fetchone()
    return int(row[0]) if row else 0


def _read_file(file: Path) -> Known | None:
    """None before the first start. What cannot be read stops the cell: to go on without knowing
    would be to trust a database that may have been restored. Raises SettingsInvalid."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Known)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as exc:
        raise SettingsInvalid(
            f"CLOISTER_CELL_INCARNATION_FILE: {file} does not say which database was here:"
            f" {exc}. Remedy: remove it, if you know that the database was not restored"
        ) from exc


def _write_file(file: Path, known: Known) -> None:
    """On disk before the database has the number: else a power failure would pass for a restore."""
    unseen = file.with_name(file.name + ".new")
    with unseen.open("wb") as written:
        written.write(msgspec.json.encode(known))
        written.flush()
        os.fsync(written.fileno())
    os.replace(unseen, file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
