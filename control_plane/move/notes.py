"""What is written down of a move for people, as it goes on."""

import time
from dataclasses import asdict

from control_plane.move.heads import Position
from control_plane.move.rows import Progress
from control_plane.move.verify import Comparison


def amounts(progress: Progress, started_s: float) -> dict[str, object]:
    """Of a copy that this attempt began, or went on with, at that time."""
    seconds = time.monotonic() - started_s
    rows_per_s = (progress.rows - progress.rows_before) / seconds if seconds > 0 else 0.0
    bytes_per_s = (progress.bytes - progress.bytes_before) / seconds if seconds > 0 else 0.0
    is_known = progress.rows_left is not None and rows_per_s > 0
    return {
        "rows": progress.rows,
        "bytes": progress.bytes,
        "copy_seconds": round(seconds, 3),
        "rows_per_s": round(rows_per_s, 1),
        "bytes_per_s": round(bytes_per_s, 1),
        "rows_left": progress.rows_left,
        "copy_eta_s": round((progress.rows_left or 0) / rows_per_s, 1) if is_known else None,
    }


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
