"""Method: moments given by hand; the display itself on a console that records."""

import asyncio
import io

from rich.console import Console

from control_plane.load.display import Pace, display
from control_plane.load.run import Tally


def test_rate_and_time_left_are_of_the_last_seconds() -> None:
    pace = Pace()
    pace.note(0, 0, 0)
    assert (pace.rows_per_second(), pace.seconds_left(100)) == (0.0, None)
    pace.note(10, 1000, 20)
    assert (pace.rows_per_second(), pace.seconds_left(100)) == (100.0, 40.0)
    for second in range(11, 40):
        pace.note(second, 1000 + (second - 10) * 10, 20 + second - 10)
    assert round(pace.rows_per_second()) == 10
    assert pace.seconds_left(100) == 100 - 49


def test_a_stall_is_shown_as_one() -> None:
    pace = Pace()
    for second in (0, 10, 20, 30):
        pace.note(second, 500, 50)
    assert (pace.rows_per_second(), pace.seconds_left(100)) == (0.0, None)


async def test_the_bar_is_drawn_on_a_terminal() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    tally = Tally(loaded=1500, rejected=2, file_bytes=50)
    shown = asyncio.create_task(display(tally, 100, console))
    await asyncio.sleep(0)
    shown.cancel()
    await asyncio.wait({shown})
    assert "1,502 rows" in written.getvalue()
    assert "2 rejected" in written.getvalue()
    assert "50%" in written.getvalue()
