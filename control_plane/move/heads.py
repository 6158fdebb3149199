"""A tenant's head in a cell, and the only ways in which a move may change it. Pure.

Every change is a compare-and-set: it names the state, epoch and move that it expects, and carries
the lease term of who asks. What is not exactly so matches nothing, and is not changed; so a
statement that comes late, twice, or from a mover whose lease is over, is harmless. The cell's
database does the same in `change_head` (cell/sql); a test holds the two against each other.
"""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from control_plane.routing import Epoch


class HeadState(StrEnum):
    OWNED = "owned"
    """This cell accepts the tenant's writes; of all cells it is the only one."""
    IMPORTING = "importing"
    """Rows are being copied and applied here; only in this state may they be."""
    READY = "ready"
    """Sealed: everything up to the fence is here. Left by the decision only."""
    FENCED = "fenced"
    """No writes any more, until the decision; reads go on."""
    MOVED = "moved"
    """A tombstone that says where the tenant is."""
    QUARANTINED = "quarantined"
    """Of a database that was restored from a backup; a person has to say what becomes of it."""


class Heading(NamedTuple):
    """The part of a head by which a change recognises it."""

    state: HeadState
    epoch: Epoch
    move_id: UUID | None
    """The move that has a hand on it. While there is one, nothing of the tenant is purged."""


class Position(NamedTuple):
    """How far a tenant's journal goes: its last sequence and the hash of its last segment."""

    seq: int
    hash: bytes


START = Position(0, hashlib.sha256(b"").digest())
"""Of a journal without segments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A row of `tenant_heads`, as a mover reads it."""

    heading: Heading
    position: Position
    term: int = 0
    """The highest lease term that has changed it."""
    moved_to: str | None = None
    """Where a tombstone points."""


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """In place of a head: the cell's database does not answer, so nobody knows."""


OUT_OF_REACH = OutOfReach()
Seen = Head | None | OutOfReach
"""What a look at a cell has found; None: it has no head of the tenant."""


class Side(StrEnum):
    """One of the two cells of a move."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One guarded statement on the tenant's head in one cell."""

    name: str
    side: Side
    expected: Heading | None
    """None: the cell has no head of the tenant, and gets one."""
    wanted: Heading
    position: Position | None = None
    """The head must also stand exactly here. The seal asks for that, and what ends with no rows."""
    is_emptied: bool = False
    """The position goes back to the beginning: there are no rows of the tenant here."""
    moved_to: str | None = None


EDGES: frozenset[tuple[HeadState | None, HeadState]] = frozenset(
    {
        (None, HeadState.IMPORTING),
        (HeadState.MOVED, HeadState.IMPORTING),
        (HeadState.IMPORTING, HeadState.READY),
        (HeadState.READY, HeadState.OWNED),
        (HeadState.OWNED, HeadState.OWNED),
        (HeadState.OWNED, HeadState.FENCED),
        (HeadState.FENCED, HeadState.OWNED),
        (HeadState.FENCED, HeadState.MOVED),
        (None, HeadState.MOVED),
        (HeadState.IMPORTING, HeadState.MOVED),
        (HeadState.READY, HeadState.MOVED),
        (HeadState.MOVED, HeadState.MOVED),
        (HeadState.QUARANTINED, HeadState.OWNED),
        (HeadState.QUARANTINED, HeadState.MOVED),
    }
)
"""From which state to which; the database refuses every other one, whoever asks."""


def apply_change(change: Change, head: Head | None, term: int) -> Head | None:
    """The head after the change, or None where the change does not match it: nothing is done."""
    if head is None:
        if change.expected is not None:
            return None
        return Head(heading=change.wanted, position=START, term=term, moved_to=change.moved_to)
    if change.expected != head.heading or head.term > term:
        return None
    if change.position not in (None, head.position):
        return None
    position = START if change.is_emptied else head.position
    return replace(
        head, heading=change.wanted, position=position, term=term, moved_to=change.moved_to
    )
