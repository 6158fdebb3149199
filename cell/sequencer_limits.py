"""How much a sequencer takes at once, and how long anybody waits for it."""

from dataclasses import dataclass
from typing import Final

INTERVAL_WRITES_MAX: Final = 2
"""A batch waits for company no longer than so many times what the last one took to write: whoever
shares an idle machine with few others would wait for nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerLimits:
    batch_size: int = 1000
    linger_s: float = 0.0
    """How long an idle sequencer waits for more after the first command of a batch."""
    interval_s: float = 0.0
    """After a batch of several commands the next starts at most so long after it, unless it is
    full; sooner, where the last one was soon written."""
    queue_wait_s: float = 5.0
    """A command that waited so long is answered "not applied" instead of being started."""
    answer_wait_s: float = 10.0
    """A caller waits so long for its commit, then gets `OutcomeUnknown`."""
    queue_commands_max: int = 8192
    queue_commands_per_tenant_max: int = 4096
    cache_accounts: int = 50_000

    def interval_after_s(self, write_s: float) -> float:
        """From a batch's start to the next one's, where the one before took `write_s` to write."""
        return min(self.interval_s, INTERVAL_WRITES_MAX * write_s)
