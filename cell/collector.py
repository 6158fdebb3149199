"""The garbage collector, told what kind of process this is."""

import gc
from typing import Final

YOUNG_MAX: Final = 50_000
"""Objects made before the youngest are looked through. The default, 700, is passed several times in
each batch, whose rows live for the batch anyway and hold no cycles."""

GENERATIONS_MAX: Final = 20


def calm_collector() -> None:
    """Collect seldom, and never again what was there before the first request.

    For the whole process: called by a cell at its start, and by whatever measures a sequencer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, GENERATIONS_MAX, GENERATIONS_MAX)
