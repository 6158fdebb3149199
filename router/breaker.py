"""The breaker of one cell: after failures, refuse at once what would only wait; find the way back.

A cell that does not answer costs every request to it a wait, a connection and a place in the queue.
While the breaker is open, none is spent. There is no other copy of the cell to turn to, so the way
back is tried soon and at a steady pace: after a pause a few requests are let through, and the first
answer closes the breaker.

What counts is whether the cell answers, not what: one tenant's unwelcome requests must not close
the cell to the others. Failures are connections not opened, answers lost or late, and requests for
which no connection came free. Knows no clock and no random numbers: both are given.
"""

from collections import deque
from typing import Final

FAILURES_IN_A_ROW: Final = 5
FAILED_SHARE: Final = 0.5
"""Of at least this many requests within the window, also when answers come in between."""
SHARE_REQUESTS_MIN: Final = 20
WINDOW_TICKS: Final = 10
"""Of one second each."""
OPEN_S: Final = (0.2, 0.8)
"""First pause, doubling up to the last: a cell that returns is found within a second."""
JITTER: Final = 0.2
"""So that several routers do not try at the same moment."""
TRIALS_MAX: Final = 3


class Breaker:
    __slots__ = (
        "_answers",
        "_failures",
        "_in_a_row",
        "_pause_s",
        "_trials",
        "_until_s",
        "_window",
        "doubted",
        "is_closed",
        "opened",
    )

    def __init__(self) -> None:
        self.is_closed = True
        self.doubted = False
        """It is not closed, or failures came since the last answer: the next one is news."""
        self.opened = 0
        """How often it opened after having been closed."""
        self._until_s = 0.0
        """While not closed: when the next trials may begin."""
        self._trials = 0
        """Let through since then."""
        self._pause_s = OPEN_S[0]
        self._in_a_row = 0
        self._failures = 0
        self._answers = 0
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW_TICKS)
        """Answers and failures in total, as they stood at each tick."""

    def is_tried(self, now_s: float) -> bool:
        """While it is not closed: whether a request could be let through now."""
        return now_s >= self._until_s

    def admits(self, now_s: float, chance: float) -> bool:
        """Whether one more request may go to the cell; spends a trial. `chance` is in [0, 1)."""
        if self.is_closed:
            return True
        if now_s < self._until_s:
            return False
        self._trials += 1
        if self._trials >= TRIALS_MAX:
            # Should the trials never end in any way, others begin after another pause.
            self._pause(now_s, chance)
        return True

    def answered(self) -> None:
        """The cell answered a request, in whatever way."""
        self._in_a_row = 0
        self.doubted = False
        if not self.is_closed:
            self.is_closed = True
            self._pause_s = OPEN_S[0]
            # What failed before has been judged; it shall not open the breaker again.
            self._window.clear()
            self._failures = 0

    def failed(self, now_s: float, chance: float) -> bool:
        """The cell failed a request; whether the breaker has opened by it."""
        self._in_a_row += 1
        self._failures += 1
        self.doubted = True
        if not self.is_closed:
            if now_s >= self._until_s:
                self._pause(now_s, chance)
            return False
        if self._in_a_row < FAILURES_IN_A_ROW:
            return False
        self._open(now_s, chance)
        return True

    def tick(self, answers: int, now_s: float, chance: float) -> bool:
        """Once a second, with the answers in total; whether the breaker has opened by it."""
        since = self._window[0] if self._window else (answers, self._failures)
        self._window.append((answers, self._failures))
        failures = self._failures - since[1]
        requests = answers - since[0] + failures
        if not self.is_closed or requests < SHARE_REQUESTS_MIN:
            return False
        if failures < requests * FAILED_SHARE:
            return False
        self._open(now_s, chance)
        return True

    def _open(self, now_s: float, chance: float) -> None:
        self.is_closed, self.doubted = False, True
        self.opened += 1
        self._pause_s = OPEN_S[0]
        self._pause(now_s, chance)

    def _pause(self, now_s: float, chance: float) -> None:
        self._until_s = now_s + self._pause_s * (1 - JITTER + 2 * JITTER * chance)
        self._pause_s = min(self._pause_s * 2, OPEN_S[1])
        self._trials = 0
