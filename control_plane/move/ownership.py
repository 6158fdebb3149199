"""Do the catalog and all cells agree who owns a tenant? Pure.

One cell owns it, the one that it is placed on, at the placement's epoch; every other cell has no
head of it, or a tombstone, and no rows, except for the two cells of a move that is open.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from control_plane.move.heads import Head, HeadState
from control_plane.move.plan import Move
from control_plane.routing import CellName, Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a cell's database has of a tenant."""

    head: Head | None
    has_rows: bool


def ownership_problems(
    placement: Placement, move: Move | None, found: Mapping[CellName, Presence]
) -> list[str]:
    """What contradicts the placement, given the tenant's open move; empty where all agree."""
    owners = [
        cell
        for cell, presence in sorted(found.items())
        if presence.head is not None and presence.head.heading.state is HeadState.OWNED
    ]
    # Not even in the middle of a move: the target owns it only after the source was fenced.
    problems = [f"{len(owners)} cells own it: {', '.join(owners)}"] if len(owners) > 1 else []
    for cell, presence in sorted(found.items()):
        if move is not None and cell in (move.source, move.target):
            problems += _foreign_hand(cell, presence, move)
        elif cell == placement.cell:
            problems += _not_owned(cell, presence, placement)
        else:
            problems += _not_gone(cell, presence)
    return problems


def _foreign_hand(cell: CellName, presence: Presence, move: Move) -> Iterator[str]:
    """The states of the two belong to the move; but only its own hand may be on them."""
    hand = presence.head.heading.move_id if presence.head else None
    if hand not in (None, move.move_id, move.follows):
        yield f"{cell} is in the hand of move {hand}, and {move.move_id} is open"


def _not_owned(cell: CellName, presence: Presence, placement: Placement) -> Iterator[str]:
    if presence.head is None:
        yield f"{cell} has no head of the tenant, which is placed there"
        return
    state, epoch, hand = presence.head.heading
    if (state, epoch) != (HeadState.OWNED, placement.epoch):
        yield f"{cell} has it {state} at epoch {epoch}, and not owned at {placement.epoch}"
    if hand is not None:
        yield f"{cell} is in the hand of move {hand}, which is not open"


def _not_gone(cell: CellName, presence: Presence) -> Iterator[str]:
    if presence.head is not None:
        state, epoch, hand = presence.head.heading
        if state is not HeadState.MOVED:
            yield f"{cell} has it {state} at epoch {epoch}, though it is placed elsewhere"
        if hand is not None:
            yield f"{cell} is in the hand of move {hand}, which is not open"
    if presence.has_rows:
        yield f"{cell} has rows of the tenant, which is placed elsewhere"
