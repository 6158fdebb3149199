"""What is written down of a move for people, as it goes on."""

import time
from dataclasses import asdict

from control_plane.move.heads import Position
from control_plane.move.rows import Progress
from control_plane.move.verify import Comparison


def amounts(progress: Progress, started_s: float) -> dict[str, object]:
    seconds = round(time.monotonic() - started_s, 3)
    return {"rows": progress.rows, "bytes": progress.bytes, "copy_seconds": seconds}


def compared(position: Position, found: Comparison) -> dict[str, object]:
    digests = [{name: asdict(each) for name, each in side.items()} for side in found.digests]
    return {
        "compared_at": position.seq,
        "differences": found.differences[:20],
        "digests": digests,
        "trial_balances": found.trial_balances,
    }


def shadow_compared(differences: list[str]) -> dict[str, object]:
    return {
        "shadow_compared_at_s": round(time.time(), 3),
        "shadow_differences": differences,
    }
