"""Versions of ledger transactions (pure): how a change is recorded, and the ids of versions.

A version is kept when it is over, as a row of what the transaction was; the last one is the
transaction itself. So a transaction that is never changed costs nothing.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from cell.ids import derive_id
from cell.ledger.model import (
    LedgerEntry,
    LedgerTransaction,
    LedgerTransactionVersion,
    Stamp,
)
from cell.ledger.rules import State

_FIRST_ORDINAL: Final = 1 << 16
"""Above the ordinals of all entries that one command can write."""


def version_id(transaction_id: str, version: int) -> str:
    """The version's id, the same before and after it is over.

    Sorted by id, versions are in the order of their transactions' ids, then of their numbers.
    """
    return derive_id(transaction_id, _FIRST_ORDINAL + version)


def version_of(id: str, transaction_id: str) -> int:
    """The number of the version with this id; negative or absurd where it is another's."""
    return int(id.replace("-", ""), 16) - int(version_id(transaction_id, 0).replace("-", ""), 16)


def next_version(
    present: LedgerTransaction,
    changed: LedgerTransaction,
    entries: Sequence[LedgerEntry],
    stamp: Stamp,
) -> tuple[LedgerTransaction, LedgerTransactionVersion]:
    """`changed` as the version after `present`, which had these live entries; and what is over."""
    after = replace(changed, version=present.version + 1, updated_at_us=stamp.at_us, seq=stamp.seq)
    before = LedgerTransactionVersion(
        tenant_id=present.tenant_id,
        id=version_id(present.id, present.version),
        ledger_transaction_id=present.id,
        version=present.version,
        ledger_id=present.ledger_id,
        status=present.status,
        description=present.description,
        external_id=present.external_id,
        ledgerable_type=present.ledgerable_type,
        ledgerable_id=present.ledgerable_id,
        reverses_id=present.reverses_id,
        reversed_by_id=present.reversed_by_id,
        partially_posts_id=present.partially_posts_id,
        archived_reason=present.archived_reason,
        metadata=present.metadata,
        entry_metadata={entry.id: entry.metadata for entry in entries if entry.metadata},
        effective_at_us=present.effective_at_us,
        posted_at_us=present.posted_at_us,
        # Every change makes a version, so that the transaction's last change made this one.
        created_at_us=present.updated_at_us,
        seq=stamp.seq,
    )
    return after, before


def name_in_original(
    reversal: LedgerTransaction, by_id: str | None, state: State, stamp: Stamp
) -> tuple[LedgerTransaction, LedgerTransactionVersion] | None:
    """What the reversal was to undo, as naming this one instead, and its version that is over.

    None where it is no reversal, or the original names another one: a part that was posted of it.
    """
    if reversal.reverses_id is None:
        return None
    original = state.transaction(reversal.reverses_id)
    assert original is not None
    assert original.reversed_by_id is not None
    if original.reversed_by_id != reversal.id:
        return None
    changed = replace(original, reversed_by_id=by_id)
    return next_version(original, changed, state.live_entries(original.id), stamp)
