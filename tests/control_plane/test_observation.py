"""Observations. Method: two readings in, the rate out."""

import pytest

from control_plane.observation import Reading, rate


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, (100, 1.0), None),
        ((100, 1.0), (100, 1.0), None),
        ((100, 1.0), (100, 2.0), 0.0),
        ((100, 1.0), (350, 3.0), 125.0),
        ((100, 1.0), (30, 2.0), 30.0),
    ],
    ids=["first", "no time", "idle", "busy", "the cell began again"],
)
def test_rate(
    before: tuple[int, float] | None, now: tuple[int, float], expected: float | None
) -> None:
    def reading(values: tuple[int, float]) -> Reading:
        return Reading(commands_applied=values[0], at_s=values[1])

    assert rate(reading(before) if before else None, reading(now)) == expected
