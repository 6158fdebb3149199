"""Fail points: places of a move at which a test has its mover fail, as it may by itself one day.

They are armed by files in the directory that CLOISTER_CONTROL_FAIL_POINTS names: one that is called
as the point says what happens to the mover that comes there next.

    kill         this process is gone at once
    stop         it stands still until somebody sends it SIGCONT
    fail         an error that nobody expects
    wait 250     it goes on after so many milliseconds

The file is renamed to `POINT.reached` first: it happens once, and whoever armed it sees when.
Without the variable nothing is looked for; it is not for platforms that serve anybody.
"""

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Final

REACHED: Final = ".reached"

log = logging.getLogger(__name__)


class FailPointReached(Exception):
    """The error that `fail` asks for."""


class FailPoints:
    """What the steps of a move pass through."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            log.warning("fail points can be armed", extra={"directory": str(directory)})

    async def reach(self, point: str) -> None:
        """Do what is armed there. Raises FailPointReached, ValueError for words unknown."""
        if self._directory is None:
            return
        armed = self._directory / point
        with contextlib.suppress(FileNotFoundError):
            words = armed.read_text().split()
            armed.rename(armed.with_name(point + REACHED))
            await _happen(words, point)


NO_FAIL_POINTS: Final = FailPoints(None)


async def _happen(words: list[str], point: str) -> None:
    log.warning("fail point reached", extra={"point": point, "action": " ".join(words)})
    match words:
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["stop"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["fail"]:
            raise FailPointReached(point)
        case ["wait", milliseconds]:
            await asyncio.sleep(int(milliseconds) / 1000)
        case _:
            raise ValueError(f"{point} is armed with {' '.join(words)!r}")
