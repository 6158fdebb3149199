"""The routing feed. Method: a real catalog, waiting tasks, and changes from two sides."""

import asyncio
from copy import deepcopy
from uuid import uuid4

import msgspec
import pytest

from control_plane import routing_feed
from control_plane.catalog import Catalog
from control_plane.errors import CatalogUnavailable
from control_plane.routing import CellName, Epoch, RoutingChange, RoutingTable, TenantLimits
from control_plane.routing_feed import Known, News, RoutingFeed

NOTHING = Known(version=0)
LONG_S = 30.0
"""Far beyond what any of these tests takes: a poll that ends earlier was woken."""


async def change(catalog: Catalog, slug: str) -> None:
    """A change of the routing table, as any control plane makes it."""
    attempt, key_id = uuid4(), uuid4()
    tenant = await catalog.begin_tenant(
        slug, organization_id=uuid4(), cell=CellName("cell-a"), attempt=attempt
    )
    await catalog.complete_tenant(
        tenant, attempt=attempt, epoch=Epoch(1), key_id=key_id, actor="test"
    )


async def test_the_current_table_is_given_at_once(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    assert feed.version is None
    await feed.refresh()
    found = await feed.newer(NOTHING, 0)
    assert found is not None
    assert found.version == feed.version
    table = msgspec.json.decode(found.content, type=RoutingTable)
    assert table == await catalog.routing_table()
    assert await feed.newer(Known(version=found.version), 0) is None, "nothing newer, and no wait"


async def test_a_change_wakes_every_waiter_at_once(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waiters = [
            tasks.create_task(feed.newer(Known(version=feed.version), LONG_S)) for _ in range(5)
        ]
        await asyncio.sleep(0)
        await change(catalog, "acme")
        await feed.refresh()
    versions = {found.version for waiter in waiters if (found := waiter.result())}
    assert versions == {await catalog.routing_version()}


def known(table: RoutingTable) -> Known:
    return Known(version=table.version, mark=table.mark)


def told(news: News | None) -> RoutingChange:
    assert news is not None
    return msgspec.json.decode(news.content, type=RoutingChange)


async def test_who_has_a_version_is_told_what_changed_since(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    tables = []
    for slug in ("acme", "globex", "initech"):
        await change(catalog, slug)
        await feed.refresh()
        tables.append(await catalog.routing_table())
    first, second, last = tables
    for table, count in ((second, 1), (first, 2)):
        news = told(await feed.newer(known(table), 0))
        assert (news.since, len(news.tenants)) == (table.version, count)
        assert news.apply_to(table) == last
    assert await feed.newer(known(last), 0) is None


async def test_limits_given_and_taken_are_changes(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await change(catalog, "acme")
    await feed.refresh()
    unlimited = await catalog.routing_table()
    for limits in (TenantLimits(in_flight=3), TenantLimits(in_flight=4)):
        await catalog.limit_tenant("acme", limits, actor="test")
        await feed.refresh()
    limited = await catalog.routing_table()
    assert told(await feed.newer(known(unlimited), 0)).apply_to(deepcopy(unlimited)) == limited
    await catalog.limit_tenant("acme", TenantLimits(), actor="test")
    await feed.refresh()
    for before in (unlimited, limited):
        after = told(await feed.newer(known(before), 0)).apply_to(before)
        assert after == await catalog.routing_table()
        assert after.limits == {}


@pytest.mark.parametrize("mark", ["", "00000000-0000-0000-0000-000000000000"])
async def test_who_has_a_version_of_another_history_is_told_all(
    catalog: Catalog, mark: str
) -> None:
    """After a catalog was restored from a backup, what changed since is not all that differs."""
    feed = RoutingFeed(catalog)
    await change(catalog, "acme")
    await feed.refresh()
    version = await catalog.routing_version()
    await change(catalog, "globex")
    await feed.refresh()
    news = told(await feed.newer(Known(version=version, mark=mark), 0))
    assert (news.since, len(news.tenants)) == (0, 2)


async def test_a_catalog_rolled_back_under_the_feed_is_read_whole(catalog: Catalog) -> None:
    """Its versions count on beyond those the feed has seen: of another history."""
    feed = RoutingFeed(catalog)
    await change(catalog, "acme")
    await feed.refresh()
    before = await catalog.routing_table()
    async with catalog.transaction() as tx:
        await tx.execute("DELETE FROM placements")
        await tx.execute("DELETE FROM routing_marks")
        await tx.execute("UPDATE routing_version SET version = version - 1")
    await feed.refresh()
    for slug in ("globex", "initech"):
        await change(catalog, slug)
    await feed.refresh()
    news = told(await feed.newer(known(before), 0))
    assert (news.since, news.version) == (0, before.version + 1)
    assert news.apply_to(None) == await catalog.routing_table()


async def test_who_missed_too_much_is_told_all(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_feed, "CHANGES_MAX", 2)
    feed = RoutingFeed(catalog)
    await feed.refresh()
    tables = []
    for number in range(4):
        tables.append(await catalog.routing_table())
        await change(catalog, f"tenant-{number}")
        await feed.refresh()
    since = [told(await feed.newer(known(table), 0)).since for table in tables]
    assert since == [0, 0, tables[2].version, tables[3].version]


async def test_refreshes_at_once_make_one_history(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    table = await catalog.routing_table()
    for number in range(5):
        others = [asyncio.create_task(feed.refresh()) for _ in range(4)]
        await change(catalog, f"tenant-{number}")
        await feed.refresh()
        assert feed.version == await catalog.routing_version(), "whoever changed it may tell"
        await asyncio.gather(*others)
    news = told(await feed.newer(known(table), 0))
    assert news.since == table.version
    assert news.apply_to(table) == await catalog.routing_table()


async def test_a_change_by_another_process_is_noticed(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    watching = asyncio.create_task(feed.watch())
    try:
        waiter = asyncio.create_task(feed.newer(Known(version=feed.version), LONG_S))
        await change(catalog, "acme")
        async with asyncio.timeout(60):
            found = await waiter
        assert found is not None
    finally:
        watching.cancel()


async def test_closing_ends_every_wait(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    waiter = asyncio.create_task(feed.newer(Known(version=feed.version), LONG_S))
    await asyncio.sleep(0)
    feed.close()
    async with asyncio.timeout(60):
        assert await waiter is None
        assert await feed.newer(Known(version=feed.version), LONG_S) is None


async def test_too_many_waiters_are_answered_at_once(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_feed, "WAITERS_MAX", 1)
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    waiter = asyncio.create_task(feed.newer(Known(version=feed.version), LONG_S))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await feed.newer(Known(version=feed.version), LONG_S) is None
    feed.close()
    await waiter


async def test_without_a_catalog_the_last_table_is_served_on(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = RoutingFeed(catalog)
    with pytest.raises(CatalogUnavailable, match="not loaded yet"):
        await feed.newer(NOTHING, 0)
    await feed.refresh()
    attempts: asyncio.Queue[None] = asyncio.Queue()

    async def away(_: Catalog) -> int:
        attempts.put_nowait(None)
        raise CatalogUnavailable("away")

    monkeypatch.setattr(Catalog, "routing_version", away)
    watching = asyncio.create_task(feed.watch())
    async with asyncio.timeout(60):
        await attempts.get()
        await attempts.get()
    assert not watching.done()
    assert await feed.newer(NOTHING, 0) is not None
    watching.cancel()
