"""Notices that the cell's database is an older state of itself, such as one restored from a backup.

How far the database's log had come is written once a second to a file beside it, which no backup of
it holds. A database that starts below that, or is another one altogether, has lost what was
acknowledged since; tenants may have moved away meanwhile. So all that it owns, or was importing, is
quarantined before anybody serves by it, and an operator says what is to become of it (`cloister
cells reclaim`). What was lost within the last second before a crash, by a disk that did not keep
its word, is not noticed here.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from cell.errors import SettingsInvalid
from cell.postgres import connection_string, one_line
from cell.schema import require_schema

WRITE_S: Final = 1.0
STATEMENT_MS_MAX: Final = 20_000

log = logging.getLogger("cell.restore")


class LogPosition(msgspec.Struct, frozen=True):
    """How far a database has come."""

    system: str
    """Its identifier, as `initdb` drew it."""
    lsn: int
    """Bytes of its write-ahead log that were flushed."""

    def is_behind(self, seen: "LogPosition") -> bool:
        """Is this an older state of what was seen, or of something else?"""
        return self.system != seen.system or self.lsn < seen.lsn


_POSITION: Final = """
SELECT system_identifier::text, (pg_current_wal_flush_lsn() - '0/0')::bigint
FROM pg_control_system()
"""
_QUARANTINE: Final = """
UPDATE tenant_heads SET state = 'quarantined', move_id = NULL
WHERE state IN ('owned', 'fenced', 'importing', 'ready')
"""
_COUNT: Final = "SELECT count(*) FROM tenant_heads WHERE state = 'quarantined'"


class RestoreWatch:
    """`open` before the cell becomes the writer; `run` in a task of its own."""

    def __init__(self, writer_dsn: str, file: Path | None) -> None:
        """Without a file nothing is watched."""
        self._dsn = connection_string(writer_dsn, "restore", statement_timeout=STATEMENT_MS_MAX)
        self._file = file
        self.quarantined = 0
        """Tenants, when that was last counted: at the start, and then while there are any."""

    async def open(self) -> None:
        """Quarantine what a restored database has.

        Raises OperationalError while it is away, SchemaMismatch, and SettingsInvalid where the file
        cannot be used.
        """
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await require_schema(connection)
            await self._quarantine_if_behind(connection)
            self.quarantined = await _count(connection)

    async def _quarantine_if_behind(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._file is None:
            return
        seen, now = _read(self._file), await _position(connection)
        if seen is not None and now.is_behind(seen):
            fields = {"was_at": seen.lsn, "is_at": now.lsn, "is_another": seen.system != now.system}
            log.error("the database is older than it was: it was restored", extra=fields)
            await connection.execute(_QUARANTINE)
        # Only now: whoever is killed in between must find out again.
        _write(self._file, await _position(connection))

    async def run(self) -> None:
        """Write down the position until cancelled."""
        while True:
            try:
                await self._follow()
            except (psycopg.Error, OSError) as error:
                log.warning("the position is not written", extra={"error": one_line(error)})
            await asyncio.sleep(WRITE_S)

    async def _follow(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            while True:
                if self._file is not None:
                    # In a thread: a disk that hangs must not hold up the requests.
                    await asyncio.to_thread(_write, self._file, await _position(connection))
                if self.quarantined:
                    self.quarantined = await _count(connection)
                await asyncio.sleep(WRITE_S)


async def _position(connection: psycopg.AsyncConnection[Any]) -> LogPosition:
    row = await (await connection.execute(_POSITION)).fetchone()
    assert row is not None
    return LogPosition(*row)


async def _count(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute(_COUNT)).fetchone()
    return int(row[0]) if row else 0


def _read(file: Path) -> LogPosition | None:
    """None before the first start. What cannot be read stops the cell: to go on without knowing
    would be to trust a database that may have been restored. Raises SettingsInvalid."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=LogPosition)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as exc:
        raise SettingsInvalid(
            f"CLOISTER_CELL_POSITION_FILE: {file} does not say how far the database had come:"
            f" {exc}. Remedy: remove it, if you know that the database was not restored"
        ) from exc


def _write(file: Path, position: LogPosition) -> None:
    """All of it or nothing; that the last second's is there after a power failure is not needed."""
    unseen = file.with_name(file.name + ".new")
    unseen.write_bytes(msgspec.json.encode(position))
    os.replace(unseen, file)
