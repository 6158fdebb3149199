"""Leaves the processors to those who serve: long work rests as long as it has worked.

Work is measured by the clock, so that a busy machine makes it rest the longer.
"""

import asyncio
import time
from typing import Final

WORK_S: Final = 0.005
"""So long at a time: about what a request takes."""
REST: Final = 1.0
"""Times the work before it."""
REST_S_MAX: Final = 1.0
"""What took longer was waiting more than working."""


class Pace:
    """Of one piece of work, from its beginning to its end."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    async def rest(self) -> None:
        """To be called often, wherever the work may stand still."""
        worked_s = time.monotonic() - self._began_s
        if worked_s >= WORK_S:
            await asyncio.sleep(min(REST_S_MAX, REST * worked_s))
            self._began_s = time.monotonic()
