"""Shows on stderr how a load goes: a bar with rate and time left; lines where no terminal is."""

import asyncio
import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from control_plane.load.run import Tally

REFRESH_S = 0.2
LINE_EVERY_S = 10.0
RATE_WINDOW_S = 15.0


class Pace:
    """Rate and time left, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def note(self, now_s: float, rows: int, file_bytes: int) -> None:
        self._seen.append((now_s, rows, file_bytes))
        while now_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()

    def rows_per_second(self) -> float:
        (start_s, start_rows, _), (end_s, end_rows, _) = self._seen[0], self._seen[-1]
        return (end_rows - start_rows) / (end_s - start_s) if end_s > start_s else 0.0

    def seconds_left(self, total_bytes: int) -> float | None:
        """None while nothing moves."""
        (start_s, _, start_bytes), (end_s, _, end_bytes) = self._seen[0], self._seen[-1]
        if end_bytes <= start_bytes:
            return None
        return (total_bytes - end_bytes) * (end_s - start_s) / (end_bytes - start_bytes)


async def display(tally: Tally, total_bytes: int, console: Console) -> None:
    """Show `tally` until cancelled."""
    pace = Pace()
    if not console.is_terminal:
        while True:
            pace.note(time.monotonic(), tally.rows, tally.file_bytes)
            await asyncio.sleep(LINE_EVERY_S)
            pace.note(time.monotonic(), tally.rows, tally.file_bytes)
            console.print(_sentence(tally, pace, total_bytes), highlight=False, soft_wrap=True)
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=max(1, total_bytes))
        try:
            while True:
                _redraw(progress, bar, tally, pace, total_bytes)
                await asyncio.sleep(REFRESH_S)
        finally:
            _redraw(progress, bar, tally, pace, total_bytes)


def _redraw(progress: Progress, bar: int, tally: Tally, pace: Pace, total_bytes: int) -> None:
    pace.note(time.monotonic(), tally.rows, tally.file_bytes)
    progress.update(
        bar,  # type: ignore[arg-type]  # a NewType of rich's over int
        completed=tally.file_bytes,
        description=_sentence(tally, pace, total_bytes),
        refresh=True,
    )


def _sentence(tally: Tally, pace: Pace, total_bytes: int) -> str:
    left_s = pace.seconds_left(total_bytes)
    parts = [f"{tally.rows:,} rows", f"{pace.rows_per_second():,.0f}/s"]
    if left_s is not None:
        parts.append(f"{int(left_s) // 60}:{int(left_s) % 60:02} left")
    if tally.rejected:
        parts.append(f"{tally.rejected:,} rejected")
    return ", ".join(parts)
