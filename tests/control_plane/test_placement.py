"""Placement. Method: a table of cells in, the chosen name or the error out."""

from dataclasses import replace

import pytest

from control_plane.errors import NoOpenCell, PlacementRefused
from control_plane.placement import Candidate, choose_cell
from control_plane.routing import CellName


def cell(name: str, tenants: int = 0, rate: float = 0.0) -> Candidate:
    return Candidate(
        name=CellName(name),
        accepts_tenants=True,
        healthy=True,
        tenants=tenants,
        commands_per_second=rate,
    )


@pytest.mark.parametrize(
    ("cells", "chosen"),
    [
        ([cell("b"), cell("a")], "a"),
        ([cell("a", tenants=1), cell("b")], "b"),
        ([cell("a", rate=5.0), cell("b", rate=4.0)], "b"),
        ([cell("a", tenants=1), cell("b", rate=900.0)], "b"),
        ([replace(cell("a"), accepts_tenants=False), cell("b", tenants=9)], "b"),
        ([replace(cell("a"), healthy=False), cell("b", tenants=9)], "b"),
    ],
    ids=["by name", "by tenants", "by rate", "tenants before rate", "closed", "unhealthy"],
)
def test_the_least_loaded_open_cell(cells: list[Candidate], chosen: str) -> None:
    assert choose_cell(cells, None) == chosen
    assert choose_cell(cells[::-1], None) == chosen, "the order of the cells does not matter"


def test_the_named_cell_even_if_loaded_or_unhealthy() -> None:
    cells = [cell("a"), replace(cell("b", tenants=9), healthy=False)]
    assert choose_cell(cells, "b") == "b"


def test_an_unknown_cell_names_the_known_ones() -> None:
    with pytest.raises(PlacementRefused, match="no cell 'c'; cells: a, b"):
        choose_cell([cell("a"), cell("b")], "c")


def test_a_closed_cell_is_refused_by_name() -> None:
    with pytest.raises(PlacementRefused, match="cell a takes no new tenants"):
        choose_cell([replace(cell("a"), accepts_tenants=False)], "a")


def test_no_open_cell() -> None:
    with pytest.raises(PlacementRefused, match="accepts_tenants: true") as caught:
        choose_cell([replace(cell("a"), accepts_tenants=False)], None)
    assert not caught.value.retryable


def test_no_healthy_cell_is_worth_a_retry() -> None:
    with pytest.raises(NoOpenCell, match="no open cell is healthy now \\(a\\)") as caught:
        choose_cell([replace(cell("a"), healthy=False)], None)
    assert caught.value.retryable
