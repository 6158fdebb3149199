"""The routing feed. Method: a real catalog, waiting tasks, and changes from two sides."""

import asyncio
from uuid import uuid4

import msgspec
import pytest

from control_plane import routing_feed
from control_plane.catalog import Catalog
from control_plane.errors import CatalogUnavailable
from control_plane.routing import CellName, Epoch, RoutingTable
from control_plane.routing_feed import RoutingFeed

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
    found = await feed.newer(0, 0)
    assert found is not None
    assert found.version == feed.version
    table = msgspec.json.decode(found.content, type=RoutingTable)
    assert table == await catalog.routing_table()
    assert await feed.newer(found.version, 0) is None, "nothing newer, and no wait"


async def test_a_change_wakes_every_waiter_at_once(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        waiters = [tasks.create_task(feed.newer(feed.version, LONG_S)) for _ in range(5)]
        await asyncio.sleep(0)
        await change(catalog, "acme")
        await feed.refresh()
    versions = {found.version for waiter in waiters if (found := waiter.result())}
    assert versions == {await catalog.routing_version()}


async def test_a_change_by_another_process_is_noticed(catalog: Catalog) -> None:
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    watching = asyncio.create_task(feed.watch())
    try:
        waiter = asyncio.create_task(feed.newer(feed.version, LONG_S))
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
    waiter = asyncio.create_task(feed.newer(feed.version, LONG_S))
    await asyncio.sleep(0)
    feed.close()
    async with asyncio.timeout(60):
        assert await waiter is None
        assert await feed.newer(feed.version, LONG_S) is None


async def test_too_many_waiters_are_answered_at_once(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_feed, "WAITERS_MAX", 1)
    feed = RoutingFeed(catalog)
    await feed.refresh()
    assert feed.version is not None
    waiter = asyncio.create_task(feed.newer(feed.version, LONG_S))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await feed.newer(feed.version, LONG_S) is None
    feed.close()
    await waiter


async def test_without_a_catalog_the_last_table_is_served_on(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = RoutingFeed(catalog)
    with pytest.raises(CatalogUnavailable, match="not loaded yet"):
        await feed.newer(0, 0)
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
    assert await feed.newer(0, 0) is not None
    watching.cancel()
