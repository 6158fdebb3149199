"""The certificate of a move: what was proved of it, in one file that can be checked by itself.

Everything in it was written down while it was measured: the plan, the digests of all rows and the
trial balance of both cells at one sequence, the position at which the journal of the source ended,
and what a recomputation of the target's ledger counted beyond it. The digests are such that
anybody can compute them again from a dump of either database; `HOW` says how.
"""

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from cell.tables import COMPARED_TABLES
from control_plane.errors import NotFound
from control_plane.move.plan import Decision

if TYPE_CHECKING:
    # The catalog's driver is not needed to check a file.
    from control_plane.move.register import MoveRecord

FORMAT = 1
HOW = (
    "digest of a table: for each row of the tenant, MD5 of the row's text (SELECT md5(t::text) FROM"
    " TABLE t); its two halves as signed 64-bit integers, each summed over all rows"
)


class Digest(msgspec.Struct, frozen=True):
    rows: int
    digest: str


class Cut(msgspec.Struct, frozen=True):
    """Where the journal of the source ended."""

    seq: int
    hash: str


class Recomputed(msgspec.Struct, frozen=True):
    """What was counted when balances and journal of the target were computed again."""

    accounts: int
    entries: int
    transactions: int
    segments: int
    last_seq: int


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """All sequences are the tenant's; pairs are of the source and the target."""

    format: int
    move_id: UUID
    tenant: str
    organization_id: UUID
    source: str
    target: str
    epoch_old: int
    epoch_new: int
    follows: UUID | None
    """The move that this one rolled back."""
    planned_at: datetime
    decided_at: datetime
    compared_at: int
    how_digests_are_made: str
    digests: tuple[dict[str, Digest], dict[str, Digest]]
    trial_balances: tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]
    """Of each currency the posted debits and credits, in its smallest unit."""
    cut: Cut
    recomputed: Recomputed
    pause_ms: float | None
    """Of writes, as the mover saw it; null: the mover that fenced did not live to tell."""
    expected_pause_ms: float | None
    checksum: str = ""
    """SHA-256 of this file's JSON without spaces and with an empty checksum. It shows accidents; a
    signature it is not."""


def certificate_of(record: "MoveRecord") -> Certificate:
    """Raises NotFound where the move was aborted, or is not proved yet."""
    progress, move = record.progress, record.move
    if record.decision is not Decision.COMMIT or record.decided_at is None or record.cut is None:
        raise NotFound(f"move {move.move_id} has not moved anything: no certificate of it exists")
    if "recomputed" not in progress:
        raise NotFound(f"move {move.move_id} is not proved yet: its ledger is being recomputed")
    certificate = Certificate(
        format=FORMAT,
        move_id=move.move_id,
        tenant=record.slug,
        organization_id=move.tenant_id,
        source=move.source,
        target=move.target,
        epoch_old=move.epoch_old,
        epoch_new=move.epoch_new,
        follows=move.follows,
        planned_at=record.created_at,
        decided_at=record.decided_at,
        compared_at=progress["compared_at"],
        how_digests_are_made=HOW,
        digests=msgspec.convert(progress["digests"], tuple[dict[str, Digest], dict[str, Digest]]),
        trial_balances=progress["trial_balances"],
        cut=Cut(record.cut.seq, record.cut.hash.hex()),
        recomputed=msgspec.convert(progress["recomputed"], Recomputed),
        pause_ms=progress.get("pause_ms"),
        expected_pause_ms=progress.get("expected_pause_ms"),
    )
    return msgspec.structs.replace(certificate, checksum=_checksum(certificate))


def problems_of(content: bytes) -> list[str]:
    """What is wrong with the certificate in a file; empty where it proves the move."""
    try:
        found = msgspec.json.decode(content, type=Certificate)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return [f"this is no certificate of a move: {exc}"]
    if found.format != FORMAT:
        return [f"its format is {found.format}, and this release knows {FORMAT}"]
    return [problem for check in _CHECKS for problem in check(found)]


def _checksum(certificate: Certificate) -> str:
    bare = msgspec.structs.replace(certificate, checksum="")
    return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


def _is_untouched(found: Certificate) -> list[str]:
    if found.checksum != _checksum(found):
        return ["its checksum is not that of its content: the file was changed"]
    return []


def _is_a_move(found: Certificate) -> list[str]:
    problems = []
    if found.source == found.target:
        problems.append("source and target are the same cell")
    if found.epoch_new <= found.epoch_old:
        problems.append(f"epoch {found.epoch_new} does not follow epoch {found.epoch_old}")
    if found.decided_at < found.planned_at:
        problems.append("it was decided before it was planned")
    return problems


def _is_complete(found: Certificate) -> list[str]:
    problems = []
    for side, digests in zip(("source", "target"), found.digests, strict=True):
        missing = sorted(set(COMPARED_TABLES) - digests.keys())
        problems += [f"{table} was not compared at the {side}" for table in missing]
    return problems


def _is_equal(found: Certificate) -> list[str]:
    at_source, at_target = found.digests
    names = sorted(at_source.keys() | at_target.keys())
    return [
        f"{name} differs: {at_source.get(name)} at the source, {at_target.get(name)} at the target"
        for name in names
        if at_source.get(name) != at_target.get(name)
    ]


def _is_balanced(found: Certificate) -> list[str]:
    problems = []
    if found.trial_balances[0] != found.trial_balances[1]:
        problems.append("the trial balances of source and target differ")
    for currency, (debits, credits) in found.trial_balances[1].items():
        if debits != credits:
            problems.append(f"{currency}: debits of {debits}, credits of {credits}")
    return problems


def _is_in_sequence(found: Certificate) -> list[str]:
    problems = []
    if found.compared_at > found.cut.seq:
        problems.append(f"compared at {found.compared_at}, beyond the end at {found.cut.seq}")
    if found.recomputed.last_seq < found.cut.seq:
        problems.append(
            f"recomputed up to {found.recomputed.last_seq}, before the end at {found.cut.seq}"
        )
    return problems


_CHECKS = (_is_untouched, _is_a_move, _is_complete, _is_equal, _is_balanced, _is_in_sequence)
