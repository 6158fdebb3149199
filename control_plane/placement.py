"""Chooses the cell of a new tenant. Pure: the cells as known now in, a name out."""

from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.errors import NoOpenCell, PlacementRefused
from control_plane.routing import CellName


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A cell as placement sees it."""

    name: CellName
    accepts_tenants: bool
    healthy: bool
    """As last observed; a cell never observed is not healthy."""
    tenants: int
    """Placed there or being created there, by the catalog."""
    commands_per_second: float
    """As last observed; 0 if unknown."""


def choose_cell(candidates: Sequence[Candidate], named: str | None) -> CellName:
    """The named cell if it takes tenants, else the least loaded open and healthy one.

    Load is the number of tenants, then the rate of commands, then the name, so that equal cells are
    filled in turn and the choice can be predicted. A named cell may be unhealthy: whoever names it
    is told so by the cell. Raises PlacementRefused, NoOpenCell.
    """
    if named is not None:
        return _named_cell(candidates, named)
    open_cells = [candidate for candidate in candidates if candidate.accepts_tenants]
    if not open_cells:
        # To ask again is in vain: cells.yaml is read at the start.
        raise PlacementRefused(
            "no cell takes new tenants; set accepts_tenants: true on one in cells.yaml"
        )
    healthy = [candidate for candidate in open_cells if candidate.healthy]
    if not healthy:
        names = ", ".join(candidate.name for candidate in open_cells)
        raise NoOpenCell(f"no open cell is healthy now ({names}); see `cloister status`")
    return min(healthy, key=lambda c: (c.tenants, c.commands_per_second, c.name)).name


def _named_cell(candidates: Sequence[Candidate], named: str) -> CellName:
    found = next((candidate for candidate in candidates if candidate.name == named), None)
    if found is None:
        names = ", ".join(candidate.name for candidate in candidates)
        raise PlacementRefused(f"there is no cell {named!r}; cells: {names}", parameter="cell")
    if not found.accepts_tenants:
        raise PlacementRefused(
            f"cell {named} takes no new tenants (accepts_tenants: false in cells.yaml)",
            parameter="cell",
        )
    return found.name
