"""The catalog: tenants, placements, keys and cells in the control plane's own Postgres.

Rows become frozen values here and nowhere else. A change that routers must learn (a placement, a
tenant's limits, a cell's address) raises the routing version in the same database transaction, a
tenant's by a trigger; every change by a person leaves an audit row in it. The catalog decides
nothing and calls no cell.

Raises CatalogUnavailable when the database cannot be reached in time; nothing is retried here.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString, Self
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.rows import class_row, dict_row, kwargs_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from control_plane.errors import CatalogUnavailable, NotFound, PlacementChanged
from control_plane.routing import (
    REPOINTED_ALWAYS,
    CellAddress,
    CellName,
    Epoch,
    OrganizationId,
    Placement,
    RoutingChange,
    RoutingTable,
    TenantLimits,
)

CONNECTIONS_MIN = 1
CONNECTIONS_MAX = 8
WAITING_MAX = 256
CONNECT_S_MAX = 5
CONNECTION_WAIT_S_MAX = 5.0
RECONNECT_S_MAX = 60.0
STATEMENT_MS_MAX = 5_000
LOCK_MS_MAX = 2_000

Connection = AsyncConnection[dict[str, Any]]


class TenantState(StrEnum):
    PROVISIONING = "provisioning"
    """Its creation began and has not been completed; no router knows it."""
    ACTIVE = "active"


class KeyState(StrEnum):
    UNCONFIRMED = "unconfirmed"
    """The tenant's cell never said that it knows it, so it was shown to nobody."""
    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    organization_id: UUID
    slug: str
    state: TenantState
    first_cell: CellName
    """Where its creation began; its home is `cell`, once it has one."""
    created_at: datetime
    cell: CellName | None
    """The placement's; None while provisioning."""
    epoch: Epoch | None
    limits: TenantLimits
    is_answered: bool
    """Its creation was answered, with its first key; until then repeating it completes it."""

    @property
    def home(self) -> CellName:
        return self.cell or self.first_cell


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    organization_id: UUID
    key_id: UUID
    created_at: datetime
    confirmed_at: datetime | None
    revoked_at: datetime | None

    @property
    def state(self) -> KeyState:
        if self.revoked_at is not None:
            return KeyState.REVOKED
        return KeyState.ACTIVE if self.confirmed_at is not None else KeyState.UNCONFIRMED


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    name: CellName
    zone: str
    api_address: str
    accepts_tenants: bool
    tenants: int
    """Placed there or being created there."""


class Catalog:
    """One pool of connections to the catalog's database."""

    def __init__(self, dsn: str) -> None:
        options = f"-c statement_timeout={STATEMENT_MS_MAX} -c lock_timeout={LOCK_MS_MAX}"
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            make_conninfo(dsn, options=options, connect_timeout=CONNECT_S_MAX),
            kwargs={"row_factory": dict_row},
            min_size=CONNECTIONS_MIN,
            max_size=CONNECTIONS_MAX,
            max_waiting=WAITING_MAX,
            timeout=CONNECTION_WAIT_S_MAX,
            reconnect_timeout=RECONNECT_S_MAX,
            # A connection that died while idle would fail the first request after a restart.
            check=AsyncConnectionPool.check_connection,
            open=False,
            name="catalog",
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close(timeout=CONNECTION_WAIT_S_MAX)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a database transaction, committed at the end of the block."""
        try:
            async with self._pool.connection() as connection:
                yield connection
        except PoolTimeout as exc:
            raise CatalogUnavailable("no connection to the catalog in time") from exc
        except psycopg.OperationalError as exc:
            raise CatalogUnavailable(f"the catalog does not answer: {exc}") from exc

    # Routing ------------------------------------------------------------------------------------

    ROUTING_VERSION: LiteralString = "SELECT version FROM routing_version"

    async def routing_version(self) -> int:
        async with self.transaction() as tx:
            row = await (await tx.execute(self.ROUTING_VERSION)).fetchone()
        assert row is not None
        return int(row["version"])

    SINCE: LiteralString = """
    SELECT coalesce(max(version), 0) AS since FROM routing_marks
    WHERE version = %s AND mark::text = %s
    """
    # One statement, so that the version and what it counts are of one snapshot. It is told since
    # when: a planner that does not know reads every line for the few that changed.
    ROUTING_CHANGE: LiteralString = """
    SELECT version, mark::text AS mark,
        (SELECT coalesce(jsonb_object_agg(name, api_address), '{}') FROM cells) AS cells,
        (SELECT coalesce(jsonb_object_agg(organization_id, jsonb_build_array(cell, epoch)), '{}')
         FROM placements WHERE changed_in > %(since)s) AS placements,
        (SELECT coalesce(jsonb_object_agg(organization_id, limits), '{}')
         FROM tenants JOIN placements USING (organization_id)
         WHERE changed_in > %(since)s AND limits <> '{}') AS limits,
        (SELECT coalesce(jsonb_agg(source ORDER BY source), '[]') FROM (
            SELECT source FROM moves
            WHERE decision = 'commit' AND decided_at > now() - interval '1 day'
            GROUP BY source HAVING count(*) > %(many)s) many) AS evacuating
    FROM routing_version
    """

    async def routing_change(self, known: RoutingTable | None) -> RoutingChange:
        """What changed since the table known; everything, where that is of another history."""
        async with self.transaction() as tx:
            since = 0
            if known is not None:
                cursor = await tx.execute(self.SINCE, (known.version, known.mark))
                found = await cursor.fetchone()
                assert found is not None
                since = found["since"]
            values = {"since": since, "many": REPOINTED_ALWAYS}
            row = await (await tx.execute(self.ROUTING_CHANGE, values)).fetchone()
        assert row is not None
        return RoutingChange(
            version=row["version"],
            mark=row["mark"],
            since=since,
            cells={
                CellName(name): CellAddress(address=address)
                for name, address in sorted(row["cells"].items())
            },
            tenants={
                OrganizationId(tenant): Placement(cell=CellName(cell), epoch=Epoch(epoch))
                for tenant, (cell, epoch) in row["placements"].items()
            },
            limits=msgspec.convert(row["limits"], dict[OrganizationId, TenantLimits]),
            evacuating=tuple(map(CellName, row["evacuating"])),
        )

    async def routing_table(self) -> RoutingTable:
        return (await self.routing_change(None)).apply_to(None)

    RAISE_VERSION: LiteralString = "UPDATE routing_version SET version = version + 1"

    # Cells --------------------------------------------------------------------------------------

    # An unchanged row is not written, so that `changed` names the addresses routers must learn.
    ENSURE_CELL: LiteralString = """
    WITH before AS (SELECT api_address FROM cells WHERE name = %(name)s)
    INSERT INTO cells (name, zone, api_address, accepts_tenants)
    VALUES (%(name)s, %(zone)s, %(api_address)s, %(accepts_tenants)s)
    ON CONFLICT (name) DO UPDATE
    SET zone = excluded.zone, api_address = excluded.api_address,
        accepts_tenants = excluded.accepts_tenants
    RETURNING api_address IS DISTINCT FROM (SELECT api_address FROM before) AS changed
    """
    # A cell that is gone from the configuration keeps its row while tenants live there.
    CLOSE_ABSENT_CELLS: LiteralString = """
    UPDATE cells SET accepts_tenants = false WHERE name <> ALL(%s) AND accepts_tenants
    """
    REMOVE_EMPTY_CELLS: LiteralString = """
    DELETE FROM cells c WHERE name <> ALL(%s)
    AND NOT EXISTS (SELECT 1 FROM placements p WHERE p.cell = c.name)
    AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.first_cell = c.name)
    AND NOT EXISTS (SELECT 1 FROM moves m WHERE c.name IN (m.source, m.target))
    """

    async def ensure_cells(self, cells: Sequence[Mapping[str, object]]) -> bool:
        """Makes the catalog's cells those configured; says whether routers must learn of it.

        cells: name, zone, api_address, accepts_tenants of each.
        """
        names = [cell["name"] for cell in cells]
        async with self.transaction() as tx:
            changed = False
            for cell in cells:
                row = await (await tx.execute(self.ENSURE_CELL, cell)).fetchone()
                assert row is not None
                changed |= row["changed"]
            await tx.execute(self.CLOSE_ABSENT_CELLS, (names,))
            changed |= (await tx.execute(self.REMOVE_EMPTY_CELLS, (names,))).rowcount > 0
            if changed:
                await tx.execute(self.RAISE_VERSION)
        return changed

    CELLS: LiteralString = """
    SELECT name, zone, api_address, accepts_tenants,
        (SELECT count(*) FROM tenants t LEFT JOIN placements p USING (organization_id)
         WHERE coalesce(p.cell, t.first_cell) = c.name)::int AS tenants
    FROM cells c ORDER BY name
    """

    async def cells(self) -> list[CellRecord]:
        async with self.transaction() as tx:
            cursor = tx.cursor(row_factory=class_row(CellRecord))
            return await (await cursor.execute(self.CELLS)).fetchall()

    RECORD_OBSERVATION: LiteralString = """
    UPDATE cells SET observed = %s, observed_at = now() WHERE name = %s
    """

    async def record_observation(self, cell: CellName, observed: Mapping[str, object]) -> None:
        async with self.transaction() as tx:
            await tx.execute(self.RECORD_OBSERVATION, (Jsonb(dict(observed)), cell))

    # Tenants ------------------------------------------------------------------------------------

    BEGIN_TENANT: LiteralString = """
    INSERT INTO tenants (organization_id, slug, state, first_cell, attempt)
    VALUES (%(organization_id)s, %(slug)s, 'provisioning', %(cell)s, %(attempt)s)
    ON CONFLICT (slug) DO UPDATE SET attempt = excluded.attempt
    WHERE tenants.attempt IS NOT NULL
    """

    async def begin_tenant(
        self, slug: str, *, organization_id: UUID, cell: CellName, attempt: UUID
    ) -> Tenant:
        """The tenant's row, made now or found; `attempt` may complete it until that is answered.

        A row that was found keeps its organization id and cell, whatever is given here.
        """
        values = {
            "organization_id": organization_id,
            "slug": slug,
            "cell": cell,
            "attempt": attempt,
        }
        async with self.transaction() as tx:
            await tx.execute(self.BEGIN_TENANT, values)
            tenant = await _tenant(tx, slug)
        assert tenant is not None
        return tenant

    ACTIVATE_TENANT: LiteralString = """
    UPDATE tenants SET state = 'active'
    WHERE organization_id = %s AND attempt = %s
    """
    PLACE_TENANT: LiteralString = """
    INSERT INTO placements (organization_id, cell, epoch) VALUES (%s, %s, %s)
    """

    async def complete_tenant(
        self, tenant: Tenant, *, attempt: UUID, epoch: Epoch, key_id: UUID, actor: str
    ) -> bool:
        """Active, placed, its key confirmed and the routing version raised, or nothing of it.

        Repeatable; a tenant that is placed stays there. Returns False if another attempt took the
        creation over.
        """
        async with self.transaction() as tx:
            activated = await tx.execute(self.ACTIVATE_TENANT, (tenant.organization_id, attempt))
            if activated.rowcount == 0:
                return False
            if tenant.cell is None:
                placement = (tenant.organization_id, tenant.first_cell, epoch)
                await tx.execute(self.PLACE_TENANT, placement)
            await tx.execute(self.CONFIRM_KEY, (tenant.organization_id, key_id))
            await audit(tx, actor, "tenant.create", tenant.slug, {"cell": tenant.home})
        return True

    ANSWER_TENANT: LiteralString = """
    UPDATE tenants SET attempt = NULL
    WHERE organization_id = %s AND state = 'active' AND attempt = %s
    """

    async def answer_tenant(self, tenant: Tenant, *, attempt: UUID) -> bool:
        """No repeat may complete it any more. False if another attempt took the creation over."""
        async with self.transaction() as tx:
            answered = await tx.execute(self.ANSWER_TENANT, (tenant.organization_id, attempt))
        return answered.rowcount == 1

    async def tenant(self, slug: str) -> Tenant:
        """Raises NotFound."""
        found = await self.find_tenant(slug)
        if found is None:
            raise NotFound(f"there is no tenant {slug!r}", parameter="tenant")
        return found

    async def slug_of(self, organization_id: UUID) -> str | None:
        async with self.transaction() as tx:
            query = "SELECT slug FROM tenants WHERE organization_id = %s"
            row = await (await tx.execute(query, (organization_id,))).fetchone()
        return None if row is None else str(row["slug"])

    async def tenants(self) -> list[Tenant]:
        async with self.transaction() as tx:
            cursor = tx.cursor(row_factory=kwargs_row(_to_tenant))
            return await (await cursor.execute(TENANTS)).fetchall()

    LIMIT_TENANT: LiteralString = "UPDATE tenants SET limits = %s WHERE slug = %s"

    async def limit_tenant(self, slug: str, limits: TenantLimits, *, actor: str) -> None:
        """Replace all the tenant's limits; routers learn at once. Raises NotFound."""
        values = msgspec.to_builtins(limits)
        async with self.transaction() as tx:
            if (await tx.execute(self.LIMIT_TENANT, (Jsonb(values), slug))).rowcount == 0:
                raise NotFound(f"there is no tenant {slug!r}", parameter="tenant")
            await audit(tx, actor, "tenant.limit", slug, values)

    ORGANIZATION_IDS: LiteralString = "SELECT slug, organization_id FROM tenants"

    async def organization_ids(self) -> dict[str, UUID]:
        """Of every tenant, by its slug."""
        async with self.transaction() as tx:
            rows = await (await tx.execute(self.ORGANIZATION_IDS)).fetchall()
        return {row["slug"]: row["organization_id"] for row in rows}

    async def find_tenant(self, slug: str) -> Tenant | None:
        async with self.transaction() as tx:
            return await _tenant(tx, slug)

    CHANGE_PLACEMENT: LiteralString = """
    UPDATE placements SET cell = %(to_cell)s, epoch = %(to_epoch)s, changed_at = now()
    WHERE organization_id = %(tenant)s AND cell = %(cell)s AND epoch = %(epoch)s
    """

    async def change_placement(
        self, tx: Connection, organization_id: UUID, *, expected: Placement, wanted: Placement
    ) -> None:
        """Compare-and-set of a placement, in the caller's database transaction; raises
        PlacementChanged if it is not `expected`."""
        assert wanted.epoch > expected.epoch, "an epoch only grows"
        values = {
            "tenant": organization_id,
            "cell": expected.cell,
            "epoch": expected.epoch,
            "to_cell": wanted.cell,
            "to_epoch": wanted.epoch,
        }
        if (await tx.execute(self.CHANGE_PLACEMENT, values)).rowcount == 0:
            raise PlacementChanged(
                f"tenant {organization_id} is not on {expected.cell} at epoch {expected.epoch}"
            )

    # Keys ---------------------------------------------------------------------------------------

    ADD_KEY: LiteralString = """
    INSERT INTO api_keys (organization_id, key_id, sha256) VALUES (%s, %s, %s)
    """

    async def add_key(self, organization_id: UUID, key_id: UUID, sha256: bytes) -> None:
        """Records a key before its cell learns it, so that none exists that is not listed."""
        async with self.transaction() as tx:
            await tx.execute(self.ADD_KEY, (organization_id, key_id, sha256))

    CONFIRM_KEY: LiteralString = """
    UPDATE api_keys SET confirmed_at = now() WHERE organization_id = %s AND key_id = %s
    """

    async def confirm_key(self, tenant: Tenant, key_id: UUID, *, actor: str) -> None:
        async with self.transaction() as tx:
            await tx.execute(self.CONFIRM_KEY, (tenant.organization_id, key_id))
            await audit(tx, actor, "key.create", tenant.slug, {"key_id": str(key_id)})

    REVOKE_KEY: LiteralString = """
    UPDATE api_keys SET revoked_at = now()
    WHERE organization_id = %s AND key_id = %s AND revoked_at IS NULL
    """

    async def revoke_key(self, tenant: Tenant, key_id: UUID, *, actor: str) -> None:
        """Records a revocation that the cell has done already; safe to repeat."""
        async with self.transaction() as tx:
            revoked = await tx.execute(self.REVOKE_KEY, (tenant.organization_id, key_id))
            if revoked.rowcount:
                await audit(tx, actor, "key.revoke", tenant.slug, {"key_id": str(key_id)})

    KEYS: LiteralString = """
    SELECT organization_id, key_id, created_at, confirmed_at, revoked_at
    FROM api_keys WHERE organization_id = %s ORDER BY created_at, key_id
    """

    async def keys(self, organization_id: UUID) -> list[ApiKey]:
        async with self.transaction() as tx:
            cursor = tx.cursor(row_factory=class_row(ApiKey))
            return await (await cursor.execute(self.KEYS, (organization_id,))).fetchall()


AUDIT: LiteralString = """
INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)
"""


async def audit(
    tx: Connection, actor: str, action: str, subject: str, detail: Mapping[str, object]
) -> None:
    await tx.execute(AUDIT, (actor, action, subject, Jsonb(dict(detail))))


TENANTS: LiteralString = """
SELECT organization_id, slug, state, first_cell, created_at, cell, epoch, limits,
    attempt IS NULL AS is_answered
FROM tenants LEFT JOIN placements USING (organization_id) ORDER BY slug
"""
TENANT: LiteralString = """
SELECT organization_id, slug, state, first_cell, created_at, cell, epoch, limits,
    attempt IS NULL AS is_answered
FROM tenants LEFT JOIN placements USING (organization_id) WHERE slug = %s
"""


async def _tenant(tx: Connection, slug: str) -> Tenant | None:
    cursor = tx.cursor(row_factory=kwargs_row(_to_tenant))
    return await (await cursor.execute(TENANT, (slug,))).fetchone()


def _to_tenant(*, state: str, limits: dict[str, Any], **columns: Any) -> Tenant:
    known = msgspec.convert(limits, TenantLimits)
    return Tenant(state=TenantState(state), limits=known, **columns)
