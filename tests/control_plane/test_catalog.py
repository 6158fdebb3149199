"""The catalog. Method: every operation against a real Postgres, then asked again."""

import asyncio
from uuid import UUID, uuid4

import psycopg
import pytest

from control_plane import migrations
from control_plane.catalog import Catalog, Tenant, TenantState
from control_plane.errors import (
    CatalogTooNew,
    CatalogUnavailable,
    NotFound,
    PlacementChanged,
)
from control_plane.migrations import CATALOG_VERSION, migrate
from control_plane.routing import REPOINTED_ALWAYS, CellName, Epoch, Placement

CELL_A, CELL_B = CellName("cell-a"), CellName("cell-b")
SHA256 = bytes(range(32))
FIRST = Epoch(1)


async def begin(catalog: Catalog, slug: str, attempt: UUID, cell: CellName = CELL_A) -> Tenant:
    return await catalog.begin_tenant(slug, organization_id=uuid4(), cell=cell, attempt=attempt)


async def create(catalog: Catalog, slug: str, cell: CellName = CELL_A) -> Tenant:
    attempt, key_id = uuid4(), uuid4()
    tenant = await begin(catalog, slug, attempt, cell)
    await catalog.add_key(tenant.organization_id, key_id, SHA256)
    assert await catalog.complete_tenant(
        tenant, attempt=attempt, epoch=FIRST, key_id=key_id, actor="operator"
    )
    assert await catalog.answer_tenant(tenant, attempt=attempt)
    return await catalog.tenant(slug)


async def audited(catalog: Catalog) -> list[tuple[str, str]]:
    async with catalog.transaction() as tx:
        cursor = await tx.execute("SELECT action, subject FROM audit ORDER BY id")
        return [(row["action"], row["subject"]) for row in await cursor.fetchall()]


async def test_migrating_twice_and_at_once_applies_each_migration_once(catalog_dsn: str) -> None:
    assert await asyncio.gather(migrate(catalog_dsn), migrate(catalog_dsn)) == [CATALOG_VERSION] * 2
    assert await migrate(catalog_dsn) == CATALOG_VERSION


async def test_a_catalog_of_a_newer_release_is_refused_untouched(catalog_dsn: str) -> None:
    await migrate(catalog_dsn)
    async with await psycopg.AsyncConnection.connect(catalog_dsn) as connection:
        await connection.execute("INSERT INTO schema_migrations (version) VALUES (9000)")
    with pytest.raises(CatalogTooNew, match=f"version 9000, this release knows {CATALOG_VERSION}"):
        await migrate(catalog_dsn)


async def test_a_failed_migration_leaves_nothing(
    catalog_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*migrations.MIGRATIONS, (2, "CREATE TABLE half (id int); SELECT 1/0"))
    monkeypatch.setattr(migrations, "MIGRATIONS", broken)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(catalog_dsn)
    async with await psycopg.AsyncConnection.connect(catalog_dsn) as connection:
        row = await (await connection.execute("SELECT to_regclass('tenants')")).fetchone()
    assert row == (None,)


async def test_a_cell_that_many_have_left_is_being_evacuated(catalog: Catalog) -> None:
    insert = """
    INSERT INTO moves (move_id, organization_id, source, target, epoch_old, epoch_new, decision,
        decided_at, finished_at)
    SELECT gen_random_uuid(), %s, 'cell-a', 'cell-b', 1, 2, %s, now() - %s::interval, now()
    FROM generate_series(1, %s)
    """
    tenant = await create(catalog, "acme")

    async def evacuating(decision: str, ago: str, count: int) -> tuple[str, ...]:
        async with catalog.transaction() as tx:
            await tx.execute("DELETE FROM moves")
            await tx.execute(insert, (tenant.organization_id, decision, ago, count))
        return (await catalog.routing_table()).evacuating

    assert await evacuating("commit", "1 hour", REPOINTED_ALWAYS) == ()
    assert await evacuating("commit", "1 hour", REPOINTED_ALWAYS + 1) == (CELL_A,)
    assert await evacuating("commit", "2 days", REPOINTED_ALWAYS + 1) == ()
    assert await evacuating("abort", "1 hour", REPOINTED_ALWAYS + 1) == ()


async def test_a_tenant_is_in_the_routing_table_only_when_complete(catalog: Catalog) -> None:
    attempt, key_id = uuid4(), uuid4()
    tenant = await begin(catalog, "acme", attempt)
    before = await catalog.routing_table()
    assert before.tenants == {}
    assert (tenant.state, tenant.cell) == (TenantState.PROVISIONING, None)

    await catalog.add_key(tenant.organization_id, key_id, SHA256)
    assert await catalog.complete_tenant(
        tenant, attempt=attempt, epoch=FIRST, key_id=key_id, actor="operator"
    )
    after = await catalog.routing_table()
    assert after.version == before.version + 1 == await catalog.routing_version()
    assert after.tenants == {str(tenant.organization_id): Placement(cell=CELL_A, epoch=FIRST)}
    assert after.cells[CELL_A].address == "127.0.0.1:8101"
    found = await catalog.tenant("acme")
    assert (found.state, found.cell, found.epoch) == (TenantState.ACTIVE, CELL_A, 1)
    assert (await catalog.keys(tenant.organization_id))[0].confirmed_at is not None
    assert await audited(catalog) == [("tenant.create", "acme")]


async def test_a_repeated_creation_keeps_the_row_and_takes_over(catalog: Catalog) -> None:
    first, second = uuid4(), uuid4()
    begun = await begin(catalog, "acme", first, CELL_A)
    repeated = await begin(catalog, "acme", second, CELL_B)
    assert repeated == begun, "same organization id, same cell"
    values = {"epoch": FIRST, "key_id": uuid4(), "actor": "operator"}
    assert not await catalog.complete_tenant(begun, attempt=first, **values)
    assert (await catalog.routing_table()).tenants == {}
    assert not await catalog.answer_tenant(repeated, attempt=second), "it is not active yet"
    assert await catalog.complete_tenant(repeated, attempt=second, **values)
    third = uuid4()
    repeated = await begin(catalog, "acme", third, CELL_B)
    assert (repeated.cell, repeated.is_answered) == (CELL_A, False)
    assert not await catalog.answer_tenant(repeated, attempt=second)
    assert await catalog.complete_tenant(repeated, attempt=third, **values)
    assert await catalog.answer_tenant(repeated, attempt=third)
    assert not await catalog.complete_tenant(repeated, attempt=third, **values)


async def test_an_answered_tenant_is_never_begun_again(catalog: Catalog) -> None:
    tenant = await create(catalog, "acme")
    assert tenant.is_answered
    assert await begin(catalog, "acme", uuid4(), CELL_B) == tenant


async def test_begun_at_once_there_is_one_row(catalog: Catalog) -> None:
    begun = await asyncio.gather(*(begin(catalog, "acme", uuid4()) for _ in range(8)))
    assert len({tenant.organization_id for tenant in begun}) == 1
    assert [tenant.slug for tenant in await catalog.tenants()] == ["acme"]


async def test_a_placement_changes_only_from_what_was_expected(catalog: Catalog) -> None:
    tenant = await create(catalog, "acme")
    here, there = Placement(CELL_A, FIRST), Placement(CELL_B, Epoch(2))
    version = await catalog.routing_version()

    async def change() -> None:
        async with catalog.transaction() as tx:
            await catalog.change_placement(tx, tenant.organization_id, expected=here, wanted=there)

    await change()
    assert await catalog.routing_version() == version + 1
    with pytest.raises(PlacementChanged, match="not on cell-a at epoch 1"):
        await change()
    assert await catalog.routing_version() == version + 1
    assert (await catalog.routing_table()).tenants[str(tenant.organization_id)] == there


async def test_only_a_changed_address_raises_the_version(catalog: Catalog) -> None:
    def cell(name: str, address: str, accepts_tenants: bool = True) -> dict[str, object]:
        return {
            "name": name,
            "zone": "local-1",
            "api_address": address,
            "accepts_tenants": accepts_tenants,
        }

    await create(catalog, "acme", CELL_B)
    version = await catalog.routing_version()
    first, second = cell("cell-a", "127.0.0.1:8101"), cell("cell-b", "127.0.0.1:8102")
    assert not await catalog.ensure_cells([first, second])
    assert not await catalog.ensure_cells([{**first, "accepts_tenants": False}, second])
    assert await catalog.routing_version() == version
    assert await catalog.ensure_cells([first, {**second, "api_address": "127.0.0.1:9000"}])
    assert await catalog.routing_version() == version + 1


async def test_an_absent_cell_stays_closed_while_tenants_live_there(catalog: Catalog) -> None:
    await create(catalog, "acme", CELL_B)
    assert not await catalog.ensure_cells(
        [{"name": "cell-a", "zone": "z", "api_address": "127.0.0.1:8101", "accepts_tenants": True}]
    )
    first, second = await catalog.cells()
    assert (first.name, first.accepts_tenants, first.tenants) == (CELL_A, True, 0)
    assert (second.name, second.accepts_tenants, second.tenants) == (CELL_B, False, 1)
    assert CELL_B in (await catalog.routing_table()).cells


async def test_an_absent_cell_without_tenants_goes(catalog: Catalog) -> None:
    assert await catalog.ensure_cells(
        [{"name": "cell-a", "zone": "z", "api_address": "127.0.0.1:8101", "accepts_tenants": True}]
    )
    assert [cell.name for cell in await catalog.cells()] == [CELL_A]


async def test_keys_are_listed_confirmed_and_revoked(catalog: Catalog) -> None:
    tenant, key_id = await create(catalog, "acme"), uuid4()
    await catalog.add_key(tenant.organization_id, key_id, SHA256)
    first, second = await catalog.keys(tenant.organization_id)
    assert (first.confirmed_at is not None, second.confirmed_at) == (True, None)
    await catalog.confirm_key(tenant, key_id, actor="operator")
    await catalog.revoke_key(tenant, key_id, actor="operator")
    await catalog.revoke_key(tenant, key_id, actor="operator")
    second = (await catalog.keys(tenant.organization_id))[1]
    assert second.confirmed_at is not None
    assert second.revoked_at is not None
    assert [action for action, _ in await audited(catalog)] == [
        "tenant.create",
        "key.create",
        "key.revoke",
    ]


async def test_an_unknown_tenant(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="no tenant 'acme'"):
        await catalog.tenant("acme")


async def test_an_observation_is_recorded(catalog: Catalog) -> None:
    version = await catalog.routing_version()
    await catalog.record_observation(CELL_A, {"healthy": True, "tenants": 3})
    async with catalog.transaction() as tx:
        cursor = await tx.execute("SELECT observed FROM cells WHERE name = 'cell-a'")
        assert await cursor.fetchone() == {"observed": {"healthy": True, "tenants": 3}}
    assert await catalog.routing_version() == version


async def test_an_absent_catalog_is_unavailable_and_retryable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("control_plane.catalog.CONNECTION_WAIT_S_MAX", 0.2)
    async with Catalog("host=127.0.0.1 port=1 dbname=none") as absent:
        with pytest.raises(CatalogUnavailable) as caught:
            await absent.routing_version()
    assert caught.value.retryable
