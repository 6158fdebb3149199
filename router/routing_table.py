"""Where each tenant lives, as this router knows it: the table, whether it is fresh, the routes.

Tables are adopted whole or refused whole (`refusal_of`, pure). They never expire: with the control
plane away, known tenants are served for as long as it takes. Only the answer for unknown tenants
depends on freshness: refused while the table is fresh, told to come back while it is stale, since
the tenant may have been created meanwhile.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from control_plane.routing import (
    REPOINTED_ALWAYS,
    CellAddress,
    CellName,
    Epoch,
    OrganizationId,
    RoutingChange,
    RoutingTable,
    TenantLimits,
)
from router.cell_pool import CellPool
from router.credentials import organization_of
from router.errors import InvalidCredentials, NoRoutingTable, TenantUnresolved
from router.framing import route_fields
from router.limits import TenantTraffic
from router.settings import Address, Settings

log = logging.getLogger(__name__)


NO_LIMITS: Final = TenantLimits()


def refusal_of(
    current: RoutingTable | None, change: RoutingChange, repointed_percent_max: int
) -> str | None:
    """Why the change, which fits, must not be made in the current table; None if it may.

    A control plane restored from an older backup would send tenants back to cells they have left;
    so neither the version nor any tenant's epoch may go down. Moves go tenant by tenant: a table
    that changes a good part of them at once is more likely a mistake than a plan.
    """
    placed, cells = change.tenants, change.cells
    for cell, described in cells.items():
        try:
            Address.parse(described.address)
        except ValueError as exc:
            return f"cell {cell}: {exc}"
    used = {placement.cell for placement in placed.values()}
    if current is not None and change.since and not current.cells.keys() <= cells.keys():
        # A cell has left the table: tenants that did not change may be placed on it.
        staying = current.tenants.keys() - placed.keys()
        used |= {current.tenants[tenant].cell for tenant in staying}
    if unknown := used - cells.keys():
        return f"tenants are placed on {min(unknown)}, which the table does not know"
    if current is None:
        return None
    if change.version < current.version:
        return f"version {change.version} is lower than {current.version}"
    repointed = 0
    for tenant in placed if change.since else current.tenants:
        before, now = current.tenants.get(tenant), placed.get(tenant)
        if before is None:
            continue
        if now is not None and now.epoch < before.epoch:
            return f"epoch {now.epoch} of tenant {tenant} is lower than {before.epoch}"
        if (now is None or now.cell != before.cell) and before.cell not in change.evacuating:
            repointed += 1
    allowed = max(REPOINTED_ALWAYS, len(current.tenants) * repointed_percent_max // 100)
    if repointed > allowed:
        return f"{repointed} of {len(current.tenants)} tenants re-pointed, {allowed} at most"
    return None


class Route:
    """A tenant's placement, ready to be used by requests."""

    __slots__ = ("epoch", "fields", "pool", "signed", "tenant", "traffic")

    def __init__(
        self, tenant: OrganizationId, epoch: Epoch, pool: CellPool, traffic: TenantTraffic
    ) -> None:
        self.tenant = tenant
        self.epoch = epoch
        self.pool = pool
        self.traffic = traffic
        self.fields = route_fields(str(pool.address), tenant, epoch)
        self.signed = (tenant.encode(), b"%d" % epoch)


class Routes:
    def __init__(
        self,
        settings: Settings,
        open_pool: Callable[[CellName, Address], CellPool],
        adopted: Callable[[], None],
    ) -> None:
        """`adopted` is told of each new table."""
        self._settings = settings
        self._open_pool = open_pool
        self._adopted = adopted
        self._table: RoutingTable | None = None
        self._routes: dict[OrganizationId, Route] = {}
        """Made when first asked for; at most one per tenant of the table."""
        self._traffic: dict[OrganizationId, TenantTraffic] = {}
        """Of tenants that were ever routed; outlives the routes, as requests are in flight."""
        self._pools: dict[CellName, CellPool] = {}
        self._retired: list[CellPool] = []
        """Of addresses no longer in the table, until their last request is done."""
        self.is_fresh = False
        """Kept by the follower: the control plane answered lately."""

    @property
    def table(self) -> RoutingTable | None:
        """None while there is none."""
        return self._table

    @property
    def version(self) -> int | None:
        """None while there is no table."""
        return None if self._table is None else self._table.version

    @property
    def tenants(self) -> int:
        return 0 if self._table is None else len(self._table.tenants)

    @property
    def pools(self) -> tuple[CellPool, ...]:
        """One for each cell of the table."""
        return tuple(self._pools.values())

    def sweep(self, now_s: float) -> None:
        for pool in (*self._pools.values(), *self._retired):
            pool.sweep(now_s)
        self._retired = [pool for pool in self._retired if pool.open_connections or pool.waiting]

    def abort(self) -> None:
        for pool in (*self._pools.values(), *self._retired):
            pool.abort()

    def resolve(self, authorization: bytes | None) -> Route:
        """The route of whoever is asking.

        Raises InvalidCredentials, NoRoutingTable or TenantUnresolved.
        """
        if authorization is None:
            raise InvalidCredentials("HTTP Basic credentials are required")
        tenant = organization_of(authorization)
        if tenant is None:
            raise InvalidCredentials("the Authorization header holds no HTTP Basic credentials")
        route = self._routes.get(tenant) or self.route_of(tenant)
        if route is not None:
            return route
        if self._table is None:
            raise NoRoutingTable("the router has not learnt where tenants live yet")
        if not self.is_fresh:
            raise TenantUnresolved("the tenant is unknown, but the routing table is not up to date")
        raise InvalidCredentials("unknown organization id or API key")

    def route_of(self, tenant: OrganizationId) -> Route | None:
        """The tenant's present route."""
        route = self._routes.get(tenant)
        if route is None and self._table is not None:
            placement = self._table.tenants.get(tenant)
            if placement is not None:
                traffic = self._traffic_of(tenant)
                route = Route(tenant, placement.epoch, self._pools[placement.cell], traffic)
                self._routes[tenant] = route
        return route

    def _traffic_of(self, tenant: OrganizationId) -> TenantTraffic:
        traffic = self._traffic.get(tenant)
        if traffic is None:
            traffic = self._traffic[tenant] = TenantTraffic(self._settings.tenant_in_flight_max)
            assert self._table is not None, "routes are made from a table"
            limits = self._table.limits.get(tenant)
            if limits is not None:
                traffic.limit(limits, self._settings.tenant_in_flight_max)
        return traffic

    def adopt(self, change: RoutingChange) -> str | None:
        """Make the change, which fits; or return why it is refused, and keep the table there is."""
        refusal = refusal_of(self._table, change, self._settings.repointed_percent_max)
        if refusal is not None:
            return refusal
        # While what it replaces can still be read.
        self._apply_limits(change)
        self._table = change.apply_to(self._table)
        is_same = self._replace_pools(change.cells)
        if not change.since or not is_same:
            self._routes = {}
        else:
            for tenant in change.tenants:
                self._routes.pop(tenant, None)
        log.info(
            "routing table adopted", extra={"version": change.version, "tenants": self.tenants}
        )
        self._adopted()
        return None

    def _replace_pools(self, cells: Mapping[CellName, CellAddress]) -> bool:
        """Those of cells that are new or have moved; whether there were none."""
        pools: dict[CellName, CellPool] = {}
        for cell, described in cells.items():
            address = Address.parse(described.address)
            pool = self._pools.get(cell)
            keep = pool is not None and pool.address == address
            pools[cell] = pool if pool is not None and keep else self._open_pool(cell, address)
        for cell, pool in self._pools.items():
            if pools.get(cell) is not pool:
                pool.close()
                self._retired.append(pool)
        is_same = pools == self._pools
        self._pools = pools
        return is_same

    def _apply_limits(self, change: RoutingChange) -> None:
        """Also to requests under way. Tenants that leave the table are forgotten."""
        if self._table is None:
            return
        if not change.since:
            traffic = self._traffic.items()
            self._traffic = {t: each for t, each in traffic if t in change.tenants}
        for tenant in change.tenants.keys() & self._traffic.keys():
            limits = change.limits.get(tenant, NO_LIMITS)
            if limits != self._table.limits.get(tenant, NO_LIMITS):
                self._traffic[tenant].limit(limits, self._settings.tenant_in_flight_max)
