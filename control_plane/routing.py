"""The routing table: every placement with a version, as routers hold it in memory and on disk.

Shape (JSON): {"version": 7, "cells": {"cell-a": {"address": "127.0.0.1:8101"}},
"tenants": {"<organization id>": {"cell": "cell-a", "epoch": 1}}}; where there is something to say,
also "limits": {"<organization id>": {"requests_per_s": 50}} and "evacuating": ["cell-a"]. Whole
tables only, never deltas.
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


class Placement(msgspec.Struct, frozen=True):
    cell: CellName
    epoch: Epoch
    """The tenant's placement number; grows by one at each switch."""


class TenantLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tenant may ask of each router; what is not said is as for any tenant."""

    requests_per_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Requests at once after a quiet time; None: as many as in a second."""
    in_flight: Annotated[int, msgspec.Meta(gt=0)] | None = None


class RoutingTable(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    """Grows with every change of a cell's address or a placement; routers never go below it."""
    cells: dict[CellName, CellAddress]
    tenants: dict[OrganizationId, Placement]
    limits: dict[OrganizationId, TenantLimits] = {}
    evacuating: tuple[CellName, ...] = ()
    """Cells that many tenants may leave at once without routers taking it for a mistake: by moves,
    more than REPOINTED_ALWAYS have within a day. A router may have been away for as long."""
