"""A target whose disk is full: the move ends at once, the source goes on, and nobody loses a write.

Method: the target's database on a small file system of its own, filled by a ballast to the last
byte.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from cell_writing import all_of, transfer
from ledger_audit import assert_ledger_holds
from moving import A, B, open_platform
from psycopg.errors import DiskFull

from cell.batch import Applied
from control_plane.catalog import Catalog
from control_plane.move.heads import HeadState
from control_plane.move.plan import Decision
from infra.local.postgres import Postgres

pytestmark = pytest.mark.faults

SIZE = "256m"
TABLESPACE = "small"


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def small_pair(
    cell_pair: tuple[Any, Any], postgres: Postgres, small_disk: Path
) -> Iterator[tuple[Any, Any]]:
    """The second of the databases is on the small disk."""
    place = small_disk / "tablespace"
    place.mkdir()
    name = cell_pair[1].name
    with psycopg.connect(postgres.superuser_dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE {TABLESPACE} LOCATION '{place}'")
        with ExitStack() as ending:
            ending.callback(connection.execute, f"DROP TABLESPACE {TABLESPACE}")
            connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE {TABLESPACE}')
            ending.callback(
                connection.execute, f'ALTER DATABASE "{name}" SET TABLESPACE pg_default'
            )
            yield cell_pair


def fill_up(disk: Path) -> Path:
    """Take what is left, byte for byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            block = b"\0" * size
            try:
                while file.write(block) == size:
                    pass
            except OSError:
                continue
    return ballast


async def test_a_move_to_a_full_disk_is_aborted(
    catalog: Catalog, small_pair: tuple[Any, Any], small_disk: Path
) -> None:
    async with open_platform(catalog, small_pair) as platform:
        ballast = fill_up(small_disk)
        move = await platform.plan(A, B, 1, 2)
        with pytest.raises(DiskFull):
            await platform.run(move)
        record = await platform.register.read(move.move_id)
        assert record.decision is Decision.ABORT
        assert "a disk is full" in str(record.progress)
        assert (await platform.head(A)).heading.state is HeadState.OWNED
        assert platform.rows_at(B) == 0
        command = transfer(*platform.accounts)
        (outcome,) = await all_of(platform.writers[A].outcome(platform.tenant_id, command))
        assert isinstance(outcome, Applied)
        ballast.unlink()
        assert (await platform.run(move)).finished_at is not None
        _, epoch, _ = await platform.register.seen(UUID(platform.tenant_id))
        record = await platform.run(await platform.plan(A, B, epoch, epoch + 1))
        assert record.decision is Decision.COMMIT
        await platform.assert_rests_at(B, epoch + 1)
    for database in small_pair:
        assert_ledger_holds(database.superuser_dsn)
