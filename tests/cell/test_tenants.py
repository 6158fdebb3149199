"""Method: a directory on a real database, whose keys the sequencer writes, and a clock moved by
hand; how often the database is asked is counted at the reader.
"""

import asyncio
import base64
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, LiteralString

import psycopg
import pytest
from cell_writing import Writing, until

from cell.errors import NotApplied, Unauthenticated, Unavailable
from cell.ledger.commands import CreateApiKey, RevokeApiKey
from cell.ledger.model import TenantId
from cell.reads import Reader
from cell.tenants import FRESH_S_MAX, REREAD_S_MIN, TENANTS_MAX, Directory
from cell.wire import Verdict


class CountingReader(Reader):
    reads = 0

    async def fetch(
        self, tenant_id: TenantId, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        self.reads += 1
        return await super().fetch(tenant_id, statement, parameters)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def reader(cell_database: Any) -> AsyncIterator[CountingReader]:
    reader = CountingReader(cell_database.reader_dsn, pool_min=1, pool_max=2)
    await reader.open()
    yield reader
    await reader.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(reader: CountingReader, clock: Clock) -> Directory:
    return Directory(reader, clock)


def basic(tenant_id: str, secret: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{tenant_id}:{secret}".encode())


async def add_key(writer: Writing, tenant_id: TenantId, secret: str) -> str:
    key_id = str(uuid.uuid4())
    sha256 = hashlib.sha256(secret.encode()).hexdigest()
    await writer.apply(tenant_id, CreateApiKey(id=key_id, secret_sha256=sha256))
    return key_id


async def is_let_in(directory: Directory, tenant_id: str, secret: str) -> bool:
    try:
        await directory.authenticate(basic(tenant_id, secret))
    except Unauthenticated:
        return False
    return True


async def test_each_key_by_its_id(
    writer: Writing, tenant_id: TenantId, directory: Directory, reader: CountingReader
) -> None:
    ids = {secret: await add_key(writer, tenant_id, secret) for secret in ("one", "two")}
    for secret, key_id in ids.items():
        for _ in range(3):
            principal = await directory.authenticate(basic(tenant_id, secret))
            assert (principal.tenant_id, principal.api_key_id) == (tenant_id, key_id)
            principal.require_readable()
    assert reader.reads == 1


async def test_wrong_keys_ask_the_database_once_a_second(
    writer: Writing,
    tenant_id: TenantId,
    directory: Directory,
    reader: CountingReader,
    clock: Clock,
) -> None:
    await add_key(writer, tenant_id, "right")
    for _ in range(5):
        assert not await is_let_in(directory, tenant_id, "wrong")
    assert reader.reads == 1
    clock.now_s += REREAD_S_MIN
    for _ in range(5):
        assert not await is_let_in(directory, tenant_id, "wrong")
    assert reader.reads == 2
    assert await is_let_in(directory, tenant_id, "right")


async def test_unknown_tenants_ask_the_database_once_a_second(
    directory: Directory, reader: CountingReader, clock: Clock
) -> None:
    unknown = str(uuid.uuid4())
    for _ in range(5):
        assert not await is_let_in(directory, unknown, "any")
    assert reader.reads == 1
    clock.now_s += REREAD_S_MIN
    assert not await is_let_in(directory, unknown, "any")
    assert reader.reads == 2


async def test_key_of_another_process_is_found_within_a_second(
    writer: Writing, tenant_id: TenantId, directory: Directory, clock: Clock
) -> None:
    await add_key(writer, tenant_id, "one")
    assert await is_let_in(directory, tenant_id, "one")
    await add_key(writer, tenant_id, "two")
    assert not await is_let_in(directory, tenant_id, "two")
    clock.now_s += REREAD_S_MIN
    assert await is_let_in(directory, tenant_id, "two")


async def test_changes_made_here_take_effect_at_once(
    writer: Writing, tenant_id: TenantId, directory: Directory
) -> None:
    key_id = await add_key(writer, tenant_id, "one")
    assert await is_let_in(directory, tenant_id, "one")
    await add_key(writer, tenant_id, "two")
    await writer.apply(tenant_id, RevokeApiKey(id=key_id))
    directory.forget(tenant_id)
    assert not await is_let_in(directory, tenant_id, "one")
    assert await is_let_in(directory, tenant_id, "two")


async def test_read_that_began_before_a_change_is_not_kept(
    writer: Writing, tenant_id: TenantId, directory: Directory, reader: CountingReader
) -> None:
    key_id = await add_key(writer, tenant_id, "one")
    early = asyncio.create_task(is_let_in(directory, tenant_id, "one"))
    await until(lambda: reader.reads == 1, "the read began")
    await writer.apply(tenant_id, RevokeApiKey(id=key_id))
    directory.forget(tenant_id)
    await early
    assert not await is_let_in(directory, tenant_id, "one")


async def test_old_knowledge_serves_while_it_is_read_again(
    writer: Writing,
    tenant_id: TenantId,
    directory: Directory,
    reader: CountingReader,
    clock: Clock,
) -> None:
    key_id = await add_key(writer, tenant_id, "one")
    assert await is_let_in(directory, tenant_id, "one")
    await writer.apply(tenant_id, RevokeApiKey(id=key_id))
    clock.now_s += FRESH_S_MAX
    assert await is_let_in(directory, tenant_id, "one")
    async with asyncio.timeout(60):
        while await is_let_in(directory, tenant_id, "one"):  # noqa: ASYNC110  # a read is under way
            await asyncio.sleep(0.01)
    assert reader.reads == 2


async def test_callers_share_one_read(
    writer: Writing, tenant_id: TenantId, directory: Directory, reader: CountingReader
) -> None:
    await add_key(writer, tenant_id, "one")
    together = [is_let_in(directory, tenant_id, "one") for _ in range(20)]
    gone = asyncio.create_task(is_let_in(directory, tenant_id, "one"))
    waiting = asyncio.gather(*together)
    await asyncio.sleep(0)
    gone.cancel()
    assert await waiting == [True] * 20
    with contextlib.suppress(asyncio.CancelledError):
        await gone
    assert reader.reads == 1


async def test_memory_is_bounded(directory: Directory, reader: CountingReader) -> None:
    """Method: the bound itself would take 20,000 reads; a full memory is made by hand."""
    tenants = directory._tenants
    assert not await is_let_in(directory, str(uuid.uuid4()), "any")
    (known,) = tenants.values()
    for number in range(TENANTS_MAX - 1):
        tenants[TenantId(str(number))] = known
    for _ in range(3):
        assert not await is_let_in(directory, str(uuid.uuid4()), "any")
    assert len(tenants) == TENANTS_MAX
    assert "0" not in tenants


def set_state(database: Any, tenant_id: str, state: str, moved_to: str | None = None) -> None:
    with psycopg.connect(database.writer_dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE tenant_heads SET state = %s, epoch = 3, moved_to = %s WHERE tenant_id = %s",
            (state, moved_to, tenant_id),
        )


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("owned", None),
        ("fenced", None),
        ("moved", Verdict.MOVED),
        ("importing", Verdict.NOT_OWNER),
        ("ready", Verdict.NOT_OWNER),
        ("quarantined", Verdict.QUARANTINED),
    ],
)
async def test_reads_are_for_the_owner(
    cell_database: Any,
    writer: Writing,
    tenant_id: TenantId,
    directory: Directory,
    state: str,
    verdict: Verdict | None,
) -> None:
    await add_key(writer, tenant_id, "one")
    set_state(cell_database, tenant_id, state, "cell-b" if state == "moved" else None)
    principal = await directory.authenticate(basic(tenant_id, "one"))
    if verdict is None:
        principal.require_readable()
        return
    with pytest.raises(NotApplied) as refused:
        principal.require_readable()
    assert (refused.value.verdict, refused.value.epoch) == (verdict, 3)
    assert refused.value.moved_to == ("cell-b" if state == "moved" else None)


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("importing", Verdict.NOT_OWNER),
        ("ready", Verdict.NOT_OWNER),
        ("moved", Verdict.MOVED),
    ],
)
async def test_keys_of_a_tenant_may_be_not_there_yet_or_deleted_already(
    cell_database: Any,
    tenant_id: TenantId,
    directory: Directory,
    state: str,
    verdict: Verdict,
) -> None:
    set_state(cell_database, tenant_id, state, "cell-b" if state == "moved" else None)
    with pytest.raises(NotApplied) as refused:
        await directory.authenticate(basic(tenant_id, "one"))
    assert refused.value.verdict is verdict


async def test_database_that_cannot_be_read(
    cell_database: Any, writer: Writing, tenant_id: TenantId, clock: Clock
) -> None:
    """Who is known stays known; who is not is told to come again."""
    await add_key(writer, tenant_id, "one")
    reader = Reader(cell_database.reader_dsn, pool_min=1, pool_max=1)
    await reader.open()
    directory = Directory(reader, clock)
    assert await is_let_in(directory, tenant_id, "one")
    await reader.close()
    clock.now_s += FRESH_S_MAX
    assert await is_let_in(directory, tenant_id, "one")
    with pytest.raises(Unavailable):
        await directory.authenticate(basic(tenant_id, "wrong"))
    with pytest.raises(Unavailable):
        await directory.authenticate(basic(str(uuid.uuid4()), "any"))
