"""Checks a history: what clients were told during moves, against what both cells hold afterwards.

It knows nothing of how a tenant is moved. What it looks at are the answers, the two heads and the
two journals; what it reports is what a customer would call a loss.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cell.journal import Record, chained_hash, decode_body
from control_plane.move.heads import START, Head, HeadState
from control_plane.move.tail import SegmentRow
from control_plane.routing import CellName


@dataclass
class History:
    """Of each key, what the client was told."""

    acknowledged: dict[str, set[int]] = field(default_factory=dict)
    """At which sequences; several only if one key had several effects."""
    refused: set[str] = field(default_factory=set)
    """Said to be not applied, at least once."""

    def acknowledge(self, key: str, seq: int) -> None:
        self.acknowledged.setdefault(key, set()).add(seq)


@dataclass(frozen=True)
class Holding:
    """What a cell holds of the tenant."""

    head: Head | None
    segments: Sequence[SegmentRow]


def problems_of(history: History, cells: Mapping[CellName, Holding]) -> list[str]:
    """What was promised and is not so; empty where the moves lost and doubled nothing."""
    owners = [
        cell
        for cell, holding in cells.items()
        if holding.head is not None and holding.head.heading.state is HeadState.OWNED
    ]
    if len(owners) != 1:
        return [f"{len(owners)} owners: {owners}"]
    (owner,) = owners
    problems = _chain_problems(cells[owner])
    problems += _write_problems(history, cells[owner])
    for cell, holding in cells.items():
        if cell != owner and holding.segments:
            problems.append(f"{cell} has {len(holding.segments)} segments left of the tenant")
    return problems


def _chain_problems(holding: Holding) -> list[str]:
    """Dense sequences, an unbroken chain, epochs that never go back, and the head at the end."""
    position, epoch = START, 0
    for segment in holding.segments:
        if segment.first_seq != position.seq + 1:
            return [f"sequence {segment.first_seq} follows {position.seq}"]
        if segment.prev_hash != position.hash:
            return [f"the chain is broken before sequence {segment.first_seq}"]
        if segment.hash != chained_hash(segment.prev_hash, segment.body):
            return [f"segment {segment.first_seq} has not the hash of its body"]
        if segment.epoch < epoch:
            return [f"sequence {segment.first_seq} was written at an epoch that had ended"]
        position, epoch = position._replace(seq=segment.last_seq, hash=segment.hash), segment.epoch
    assert holding.head is not None
    if holding.head.position != position:
        return [f"the head stands at {holding.head.position.seq}, the journal at {position.seq}"]
    return []


def _write_problems(history: History, holding: Holding) -> list[str]:
    """Acknowledged is there once, where it was said; refused, and never taken, is not there."""
    records: list[Record] = []
    for segment in holding.segments:
        records += decode_body(segment.body).records
    found = {record.idempotency_key: record.seq for record in records if record.idempotency_key}
    uses = Counter(record.idempotency_key for record in records if record.idempotency_key)
    problems = [f"{key} was applied {count} times" for key, count in uses.items() if count > 1]
    for key, seqs in history.acknowledged.items():
        if len(seqs) > 1:
            problems.append(f"{key} was acknowledged as {sorted(seqs)}")
        elif found.get(key) not in seqs:
            problems.append(f"{key} was acknowledged as {sorted(seqs)}, found {found.get(key)}")
    for key in sorted(history.refused - history.acknowledged.keys()):
        if key in found:
            problems.append(f"{key} was said to be not applied, and is at {found[key]}")
    return problems
