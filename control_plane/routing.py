"""The routing table: every placement with a version, as routers hold it in memory and on disk.

Shape (JSON): {"version": 7, "cells": {"cell-a": {"address": "127.0.0.1:8101"}},
"tenants": {"<organization id>": {"cell": "cell-a", "epoch": 1}}}; where there is something to say,
also "limits": {"<organization id>": {"requests_per_s": 50}} and "evacuating": ["cell-a"]. Routers
get it whole once, then what changed since: of a hundred thousand tenants, one moves.
"""

from typing import Annotated, NewType

import msgspec

CellName = NewType("CellName", str)
OrganizationId = NewType("OrganizationId", str)
Epoch = NewType("Epoch", int)


REPOINTED_ALWAYS = 16
"""So many tenants may change at once, however few there are."""


class CellAddress(msgspec.Struct, frozen=True):
    address: str
    """`host:port` of the cell's tenant API."""


class Placement(msgspec.Struct, frozen=True, gc=False):
    cell: CellName
    epoch: Epoch
    """The tenant's placement number; grows by one at each switch."""


class TenantLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tenant may ask of each router; what is not said is as for any tenant."""

    requests_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Requests at once after a quiet time; None: as many as in a second."""
    in_flight: Annotated[int, msgspec.Meta(gt=0)] | None = None


class RoutingTable(msgspec.Struct, omit_defaults=True):
    """Changed in place: of a hundred thousand tenants, a copy takes longer than all else."""

    version: int
    """Grows with every change of a cell's address or a placement; routers never go below it."""
    cells: dict[CellName, CellAddress]
    tenants: dict[OrganizationId, Placement]
    limits: dict[OrganizationId, TenantLimits] = {}
    evacuating: tuple[CellName, ...] = ()
    """Cells that many tenants may leave at once without routers taking it for a mistake: by moves,
    more than REPOINTED_ALWAYS have within a day. A router may have been away for as long."""
    mark: str = ""
    """Drawn with the version; another one for the same version is of another history."""


class RoutingChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes a table of any version from `since` on one of `version`."""

    version: int
    cells: dict[CellName, CellAddress]
    """All of them."""
    tenants: dict[OrganizationId, Placement]
    """Those whose placement or limits changed. No tenant ever leaves a table."""
    limits: dict[OrganizationId, TenantLimits] = {}
    """Of the tenants that changed; one without has none now."""
    evacuating: tuple[CellName, ...] = ()
    mark: str = ""
    since: int = 0
    """0: this is the whole table, whatever there was before."""

    def fits(self, before: "RoutingTable | RoutingChange | None") -> bool:
        """Whether it can be applied to the table, or to what that change makes."""
        if not self.since:
            return True
        return before is not None and self.since <= before.version <= self.version

    def apply_to(self, table: RoutingTable | None) -> RoutingTable:
        """The table given, changed in place; a new one, where this is a whole one.

        Requires that it fits.
        """
        assert self.fits(table)
        if table is None or not self.since:
            return RoutingTable(
                version=self.version,
                cells=self.cells,
                tenants=self.tenants,
                limits=self.limits,
                evacuating=self.evacuating,
                mark=self.mark,
            )
        table.version, table.mark = self.version, self.mark
        table.cells, table.evacuating = self.cells, self.evacuating
        table.tenants.update(self.tenants)
        _replace(table.limits, self)
        return table

    def followed_by(self, later: "RoutingChange") -> "RoutingChange":
        """Both as one. Requires that `later` fits what this one makes."""
        assert later.since, "a whole table replaces what was before it"
        assert later.fits(self)
        limits = self.limits.copy()
        _replace(limits, later)
        return msgspec.structs.replace(
            later, tenants=self.tenants | later.tenants, limits=limits, since=self.since
        )


def _replace(limits: dict[OrganizationId, TenantLimits], change: RoutingChange) -> None:
    limits.update(change.limits)
    for tenant in change.tenants.keys() - change.limits.keys():
        limits.pop(tenant, None)
