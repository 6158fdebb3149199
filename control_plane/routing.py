"""The routing table: every placement with a version, as routers hold it in memory and on disk.

Shape (JSON): {"version": 7, "cells": {"cell-a": {"address": "127.0.0.1:8101"}},
"tenants": {"<organization id>": {"cell": "cell-a", "epoch": 1}}}. Whole tables only, never deltas.
"""

from typing import NewType

import msgspec

CellName = NewType("CellName", str)
OrganizationId = NewType("OrganizationId", str)
Epoch = NewType("Epoch", int)


class CellAddress(msgspec.Struct, frozen=True):
    address: str
    """`host:port` of the cell's tenant API."""


class Placement(msgspec.Struct, frozen=True):
    cell: CellName
    epoch: Epoch
    """The tenant's placement number; grows by one at each switch."""


class RoutingTable(msgspec.Struct, frozen=True):
    version: int
    """Grows with every change of a cell's address or a placement; routers never go below it."""
    cells: dict[CellName, CellAddress]
    tenants: dict[OrganizationId, Placement]
