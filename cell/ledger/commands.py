"""The commands of a ledger: what is asked for, fully resolved and well-formed, not yet judged.

A command holds no clock and no randomness (those come with its `Stamp`), so that the journal's copy
of it can be re-executed. In updates an absent field is UNSET and means "as it was".
"""

import msgspec
from msgspec import UNSET, UnsetType

from cell.ledger.model import Direction, Status


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="command"):
    """Encoded as an object with its name, absent fields left out."""

    def is_exclusive(self) -> bool:
        """Is it to be decided alone, with nothing in flight? So are all that ask a question."""
        return False

    def weight(self) -> int:
        """Rows it writes, as far as it says, in entries: what bounds the work of a batch."""
        entries = getattr(self, "entries", None)
        # A change of status alone writes the entries that are there again: not known here.
        return len(entries) if isinstance(entries, tuple) else 1


class CreateApiKey(_Command, frozen=True, tag="create_api_key"):
    id: str
    secret_sha256: str


class RevokeApiKey(_Command, frozen=True, tag="revoke_api_key"):
    id: str


class CreateLedger(_Command, frozen=True, tag="create_ledger"):
    name: str
    description: str | None = None
    metadata: dict[str, str] = {}


class UpdateLedger(_Command, frozen=True, tag="update_ledger"):
    id: str
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] = {}
    """Merged into what is there; a key with "" or None is removed. So in every update."""


class DeleteLedger(_Command, frozen=True, tag="delete_ledger"):
    id: str


class CreateLedgerAccount(_Command, frozen=True, tag="create_ledger_account"):
    ledger_id: str
    name: str
    normal_balance: Direction
    currency: str
    currency_exponent: int
    description: str | None = None
    external_id: str | None = None
    ledgerable_type: str | None = None
    ledgerable_id: str | None = None
    metadata: dict[str, str] = {}


class UpdateLedgerAccount(_Command, frozen=True, tag="update_ledger_account"):
    id: str
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    external_id: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] = {}


class DeleteLedgerAccount(_Command, frozen=True, tag="delete_ledger_account"):
    id: str


class BalanceLock(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Conditions on one balance of an account after the whole transaction; all must hold."""

    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None
    eq: int | None = None


class EntryDraft(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry as asked for."""

    ledger_account_id: str
    direction: Direction
    amount: int
    effective_at_us: int | None = None
    """None: the transaction's."""
    lock_version: int | None = None
    """The account's lock version which the caller requires before the write."""
    pending_lock: BalanceLock | None = None
    posted_lock: BalanceLock | None = None
    available_lock: BalanceLock | None = None
    shows_resulting_balances: bool = False
    metadata: dict[str, str] = {}


class CreateLedgerTransaction(_Command, frozen=True, tag="create_ledger_transaction"):
    entries: tuple[EntryDraft, ...]
    status: Status = Status.PENDING
    description: str | None = None
    effective_at_us: int | None = None
    """None: the time of the write."""
    external_id: str | None = None
    ledgerable_type: str | None = None
    ledgerable_id: str | None = None
    metadata: dict[str, str] = {}


class UpdateLedgerTransaction(_Command, frozen=True, tag="update_ledger_transaction"):
    id: str
    status: Status | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    effective_at_us: int | UnsetType = UNSET
    external_id: str | UnsetType | None = UNSET
    ledgerable_type: str | UnsetType | None = UNSET
    ledgerable_id: str | UnsetType | None = UNSET
    entries: tuple[EntryDraft, ...] | UnsetType = UNSET
    """Replaces the whole set."""
    metadata: dict[str, str | None] = {}


class UpdateLedgerEntry(_Command, frozen=True, tag="update_ledger_entry"):
    id: str
    metadata: dict[str, str | None] = {}


Queueable = (
    CreateLedgerAccount
    | UpdateLedgerAccount
    | DeleteLedgerAccount
    | CreateLedgerTransaction
    | UpdateLedgerTransaction
)
"""Commands that can be applied later."""


class BulkError(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Why a row of a bulk request failed."""

    code: str
    message: str
    parameter: str | None = None


class BulkItem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One row of a bulk request: well-formed, and so a command, or the error that it is not."""

    request_params: str
    """JSON of the row as the caller sent it."""
    command: Queueable | None = None
    error: BulkError | None = None


class CreateBulkRequest(_Command, frozen=True, tag="create_bulk_request"):
    """Queues its items, durably and in their order, each to be applied by itself."""

    action_type: str
    resource_type: str
    items: tuple[BulkItem, ...]
    metadata: dict[str, str] = {}

    def weight(self) -> int:
        return len(self.items)


class QueueLedgerTransaction(_Command, frozen=True, tag="queue_ledger_transaction"):
    """Queues a ledger transaction, if it could be applied now, as a bulk request of one item."""

    request_params: str
    inner: CreateLedgerTransaction

    def is_exclusive(self) -> bool:
        return self.inner.is_exclusive()

    def weight(self) -> int:
        return self.inner.weight()


class ApplyQueued(_Command, frozen=True, tag="apply_queued"):
    """Applies a queued command, unless its result is settled already."""

    id: str
    """Of the result."""
    request_id: str
    inner: Queueable

    def is_exclusive(self) -> bool:
        return self.inner.is_exclusive()

    def weight(self) -> int:
        return self.inner.weight()


class RefuseQueued(_Command, frozen=True, tag="refuse_queued"):
    """Fails a queued command that the rules allow and the database refuses."""

    id: str
    request_id: str
    error: BulkError


Command = (
    CreateApiKey
    | RevokeApiKey
    | CreateLedger
    | UpdateLedger
    | DeleteLedger
    | CreateLedgerAccount
    | UpdateLedgerAccount
    | DeleteLedgerAccount
    | CreateLedgerTransaction
    | UpdateLedgerTransaction
    | UpdateLedgerEntry
    | CreateBulkRequest
    | QueueLedgerTransaction
    | ApplyQueued
    | RefuseQueued
)
