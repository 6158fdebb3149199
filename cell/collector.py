"""The garbage collector, told what kind of process this is."""

import gc
from typing import Final

YOUNG_MAX: Final = 5_000
"""Objects made before the youngest are looked through, which takes milliseconds, as they are cold.
The default, 700, is passed several times in each batch, whose rows live for the batch anyway and
hold no cycles; ten times as many stop the cell for longer than requests may take."""

OLDER_MAX: Final = 1_000
"""Looks at the youngest before those that outlived one are looked through: what the cell remembers,
all of it rows without cycles, at a tenth of a second."""

OLDEST_MAX: Final = 20


def calm_collector() -> None:
    """Collect seldom, and never again what was there before the first request.

    For the whole process: called by a cell at its start, and by whatever measures a sequencer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, OLDER_MAX, OLDEST_MAX)
