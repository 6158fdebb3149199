"""Bodies of ledger transactions to commands: amounts, times, locks; and what is refused."""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.errors import Unprocessable
from cell.ledger.commands import (
    BalanceLock,
    CategoryBalanceLock,
    CreateLedgerTransaction,
    EntryDraft,
    PartiallyPostLedgerTransaction,
    ReverseLedgerTransaction,
    UpdateLedgerTransaction,
)
from cell.ledger.entry_writing import ENTRIES_MAX
from cell.ledger.model import Direction, Status
from cell.timestamps import parse_date, parse_timestamp
from cell.wellformed import (
    Description,
    ExternalId,
    Id,
    LedgerableId,
    Metadata,
    parse_uuid,
    require_both_or_neither,
    require_clean_external_id,
    resolve_amount,
    without_empty_values,
)


class LedgerableType(StrEnum):
    """What a transaction may be linked to."""

    EXPECTED_PAYMENT = "expected_payment"
    INCOMING_PAYMENT_DETAIL = "incoming_payment_detail"
    PAYMENT_ORDER = "payment_order"
    RETURN = "return"
    REVERSAL = "reversal"


class LockBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A balance lock; a condition that is not known must not be taken for met."""

    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None
    eq: int | None = None


class EntryBody(msgspec.Struct, frozen=True):
    ledger_account_id: Id
    direction: Direction
    amount: int | UnsetType = UNSET
    amount_string: str | UnsetType = UNSET
    effective_at: str | None = None
    lock_version: int | None = None
    pending_balance_amount: LockBody | None = None
    posted_balance_amount: LockBody | None = None
    available_balance_amount: LockBody | None = None
    show_resulting_ledger_account_balances: bool | None = None
    metadata: Metadata = {}


class CategoryLockBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Locks on the balances of a category; the shape is ours, the hosted API publishes none."""

    ledger_account_category_id: Id
    pending_balance_amount: LockBody | None = None
    posted_balance_amount: LockBody | None = None
    available_balance_amount: LockBody | None = None


CATEGORY_LOCKS_MAX: Final = 10
"""Of a transaction: while their sums are asked for, the cell decides nothing else."""

CategoryLockBodies = Annotated[list[CategoryLockBody], msgspec.Meta(max_length=CATEGORY_LOCKS_MAX)]


class CreateBody(msgspec.Struct, frozen=True):
    ledger_entries: list[EntryBody]
    status: Status = Status.PENDING
    description: Description | None = None
    effective_at: str | None = None
    effective_date: str | None = None
    external_id: ExternalId | None = None
    ledgerable_type: LedgerableType | None = None
    ledgerable_id: LedgerableId | None = None
    metadata: Metadata = {}
    archive_on_balance_lock_failure: bool | None = None
    ledger_account_category_balance_locks: CategoryLockBodies | None = None


class UpdateBody(msgspec.Struct, frozen=True):
    status: Status | UnsetType = UNSET
    description: Description | UnsetType | None = UNSET
    effective_at: str | UnsetType = UNSET
    external_id: ExternalId | UnsetType | None = UNSET
    ledgerable_type: LedgerableType | UnsetType | None = UNSET
    ledgerable_id: LedgerableId | UnsetType | None = UNSET
    ledger_entries: list[EntryBody] | UnsetType = UNSET
    metadata: Metadata = {}
    archive_on_balance_lock_failure: bool | None = None
    ledger_account_category_balance_locks: CategoryLockBodies | None = None


class PartialPostBody(msgspec.Struct, frozen=True):
    posted_ledger_entries: list[EntryBody]
    description: Description | None = None
    effective_at: str | None = None
    metadata: Metadata = {}


class ReversalBody(msgspec.Struct, frozen=True):
    status: Status = Status.POSTED
    description: Description | None = None
    effective_at: str | None = None
    external_id: ExternalId | None = None
    ledgerable_type: LedgerableType | None = None
    ledgerable_id: LedgerableId | None = None
    metadata: Metadata = {}


def create_command(body: CreateBody) -> CreateLedgerTransaction:
    require_clean_external_id(body.external_id)
    require_both_or_neither(body.ledgerable_type, body.ledgerable_id)
    return CreateLedgerTransaction(
        entries=_drafts(body.ledger_entries),
        status=body.status,
        description=body.description,
        effective_at_us=_effective_at_or_date(body),
        external_id=body.external_id,
        ledgerable_type=body.ledgerable_type,
        ledgerable_id=body.ledgerable_id,
        metadata=without_empty_values(body.metadata),
        archives_on_broken_lock=bool(body.archive_on_balance_lock_failure),
        category_locks=_category_locks(body.ledger_account_category_balance_locks),
    )


def update_command(id: str, body: UpdateBody) -> UpdateLedgerTransaction:
    if body.archive_on_balance_lock_failure:
        parameter = "archive_on_balance_lock_failure"
        raise Unprocessable(f"{parameter} is for new ledger transactions only", parameter)
    require_clean_external_id(body.external_id)
    require_both_or_neither(body.ledgerable_type, body.ledgerable_id)
    return UpdateLedgerTransaction(
        id=id,
        status=body.status,
        description=body.description,
        effective_at_us=(
            UNSET
            if body.effective_at is UNSET
            else parse_timestamp(body.effective_at, "effective_at")
        ),
        external_id=body.external_id,
        ledgerable_type=body.ledgerable_type,
        ledgerable_id=body.ledgerable_id,
        entries=UNSET if body.ledger_entries is UNSET else _drafts(body.ledger_entries),
        metadata=body.metadata,
        category_locks=_category_locks(body.ledger_account_category_balance_locks),
    )


_NEED_AN_ANSWER: Final = (
    "lock_version",
    "pending_balance_amount",
    "posted_balance_amount",
    "available_balance_amount",
    "show_resulting_ledger_account_balances",
)
"""Fields of an entry that are about the very moment of the request."""


def require_deferrable(body: CreateBody | UpdateBody) -> None:
    """Refuse what needs an immediate answer, in a request that is applied later."""
    for name in ("archive_on_balance_lock_failure", "ledger_account_category_balance_locks"):
        if getattr(body, name):
            raise Unprocessable(f"{name} needs an immediate answer; not in bulk or async", name)
    if body.ledger_entries is UNSET:
        return
    for n, entry in enumerate(body.ledger_entries):
        for name in _NEED_AN_ANSWER:
            value = getattr(entry, name)
            # A lock without conditions is none, and neither is one that is null or false.
            if value is not None and value is not False and value != _NO_CONDITIONS:
                at = f"{_AT}[{n}].{name}"
                raise Unprocessable(f"{at} needs an immediate answer; not in bulk or async", at)


def partial_post_command(id: str, body: PartialPostBody) -> PartiallyPostLedgerTransaction:
    return PartiallyPostLedgerTransaction(
        id=id,
        entries=_drafts(body.posted_ledger_entries, "posted_ledger_entries"),
        description=body.description,
        effective_at_us=_effective_at(body.effective_at),
        metadata=without_empty_values(body.metadata),
    )


def reversal_command(id: str, body: ReversalBody) -> ReverseLedgerTransaction:
    require_clean_external_id(body.external_id)
    require_both_or_neither(body.ledgerable_type, body.ledgerable_id)
    return ReverseLedgerTransaction(
        id=id,
        status=body.status,
        description=body.description,
        effective_at_us=_effective_at(body.effective_at),
        external_id=body.external_id,
        ledgerable_type=body.ledgerable_type,
        ledgerable_id=body.ledgerable_id,
        metadata=without_empty_values(body.metadata),
    )


def _effective_at_or_date(body: CreateBody) -> int | None:
    if body.effective_at is None and body.effective_date is not None:
        return parse_date(body.effective_date, "effective_date")
    return _effective_at(body.effective_at)


def _effective_at(text: str | None) -> int | None:
    return None if text is None else parse_timestamp(text, "effective_at")


_AT: Final = "ledger_entries"


def _drafts(entries: list[EntryBody], at: str = _AT) -> tuple[EntryDraft, ...]:
    """`at` is the array's name in the body."""
    if len(entries) > ENTRIES_MAX:
        raise Unprocessable(f"{at}: {len(entries)} entries, at most {ENTRIES_MAX}", at)
    return tuple([_draft(entry, at, n) for n, entry in enumerate(entries)])


def _draft(entry: EntryBody, at: str, n: int) -> EntryDraft:
    effective_at_us = None
    if entry.effective_at is not None:
        effective_at_us = parse_timestamp(entry.effective_at, f"{at}[{n}].effective_at")
    return EntryDraft(
        ledger_account_id=parse_uuid(entry.ledger_account_id, f"{at}[{n}].ledger_account_id"),
        direction=entry.direction,
        amount=resolve_amount(entry.amount, entry.amount_string, at, n),
        effective_at_us=effective_at_us,
        lock_version=entry.lock_version,
        pending_lock=_lock(entry.pending_balance_amount),
        posted_lock=_lock(entry.posted_balance_amount),
        available_lock=_lock(entry.available_balance_amount),
        shows_resulting_balances=bool(entry.show_resulting_ledger_account_balances),
        metadata=without_empty_values(entry.metadata),
    )


def _category_locks(bodies: list[CategoryLockBody] | None) -> tuple[CategoryBalanceLock, ...]:
    """Those with any conditions."""
    at = "ledger_account_category_balance_locks"
    locks = (
        CategoryBalanceLock(
            category_id=parse_uuid(
                body.ledger_account_category_id, f"{at}[{n}].ledger_account_category_id"
            ),
            pending_lock=_lock(body.pending_balance_amount),
            posted_lock=_lock(body.posted_balance_amount),
            available_lock=_lock(body.available_balance_amount),
        )
        for n, body in enumerate(bodies or ())
    )
    return tuple(
        lock for lock in locks if lock.pending_lock or lock.posted_lock or lock.available_lock
    )


def _lock(body: LockBody | None) -> BalanceLock | None:
    """A lock without conditions is none."""
    if body is None or body == _NO_CONDITIONS:
        return None
    return BalanceLock(gt=body.gt, gte=body.gte, lt=body.lt, lte=body.lte, eq=body.eq)


_NO_CONDITIONS: Final = LockBody()
