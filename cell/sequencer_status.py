"""What operators and metrics see of the sequencer."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

BATCH_TIMES_KEPT: Final = 512


@dataclass(slots=True)
class SequencerStatus:
    """What operators and metrics see; counters since the start."""

    writer_epoch: int = 0
    batches: int = 0
    commands_applied: int = 0
    commands_refused: int = 0
    last_error: str | None = None
    connected: bool = False
    batch_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=BATCH_TIMES_KEPT))

    @property
    def batch_s(self) -> float:
        """Of the last one, from the start of its write to its commit; 0 before the first."""
        return self.batch_times_s[-1] if self.batch_times_s else 0.0

    @property
    def batch_ms_p99(self) -> float:
        """Of the last batches, from the start of the write to its commit; 0 before the first."""
        times = sorted(self.batch_times_s)
        return round(times[int(len(times) * 0.99)] * 1000, 3) if times else 0.0
