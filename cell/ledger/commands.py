"""The commands of a ledger: what is asked for, fully resolved and well-formed, not yet judged.

A command holds no clock and no randomness (those come with its `Stamp`), so that the journal's copy
of it can be re-executed. In updates an absent field is UNSET and means "as it was".
"""

import msgspec
from msgspec import UNSET, UnsetType

from cell.ledger.model import (
    Direction,
    MonitoredField,
    MonitorOperator,
    SettlementStatus,
    Status,
)


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
    category_ids: tuple[str, ...] = ()
    """Categories it becomes a member of."""


class UpdateLedgerAccount(_Command, frozen=True, tag="update_ledger_account"):
    id: str
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    external_id: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] = {}


class DeleteLedgerAccount(_Command, frozen=True, tag="delete_ledger_account"):
    id: str


class CreateLedgerAccountCategory(_Command, frozen=True, tag="create_ledger_account_category"):
    ledger_id: str
    name: str
    normal_balance: Direction
    currency: str
    currency_exponent: int
    description: str | None = None
    external_id: str | None = None
    metadata: dict[str, str] = {}
    category_ids: tuple[str, ...] = ()
    """Categories it is nested under."""


class UpdateLedgerAccountCategory(_Command, frozen=True, tag="update_ledger_account_category"):
    id: str
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    external_id: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] = {}


class DeleteLedgerAccountCategory(_Command, frozen=True, tag="delete_ledger_account_category"):
    id: str


class AddLedgerAccountToCategory(_Command, frozen=True, tag="add_ledger_account_to_category"):
    category_id: str
    ledger_account_id: str


class RemoveLedgerAccountFromCategory(
    _Command, frozen=True, tag="remove_ledger_account_from_category"
):
    category_id: str
    ledger_account_id: str


class NestLedgerAccountCategory(_Command, frozen=True, tag="nest_ledger_account_category"):
    category_id: str
    sub_category_id: str

    def is_exclusive(self) -> bool:
        """How many levels there are below the sub-category is asked of the database."""
        return True


class UnnestLedgerAccountCategory(_Command, frozen=True, tag="unnest_ledger_account_category"):
    category_id: str
    sub_category_id: str


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


class CategoryBalanceLock(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Conditions on the balances of a category after the whole transaction; all must hold."""

    category_id: str
    pending_lock: BalanceLock | None = None
    posted_lock: BalanceLock | None = None
    available_lock: BalanceLock | None = None


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
    archives_on_broken_lock: bool = False
    """Where a balance lock does not hold: record the transaction as archived, not refuse it."""
    category_locks: tuple[CategoryBalanceLock, ...] = ()

    def is_exclusive(self) -> bool:
        """With locks on categories: their sums are asked of the database."""
        return bool(self.category_locks)


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
    category_locks: tuple[CategoryBalanceLock, ...] = ()

    def is_exclusive(self) -> bool:
        """With locks on categories: their sums are asked of the database."""
        return bool(self.category_locks)


class PartiallyPostLedgerTransaction(
    _Command, frozen=True, tag="partially_post_ledger_transaction"
):
    """Post a part of a pending transaction as a transaction of its own."""

    id: str
    """Of the pending one, which keeps the rest."""
    entries: tuple[EntryDraft, ...]
    """One for each entry of the pending one."""
    description: str | None = None
    effective_at_us: int | None = None
    """None: the time of the write."""
    metadata: dict[str, str] = {}


class ReverseLedgerTransaction(_Command, frozen=True, tag="reverse_ledger_transaction"):
    id: str
    """Of the posted transaction to be undone by a new one."""
    status: Status = Status.POSTED
    description: str | None = None
    effective_at_us: int | None = None
    """None: each entry is dated as the one it undoes."""
    external_id: str | None = None
    ledgerable_type: str | None = None
    ledgerable_id: str | None = None
    metadata: dict[str, str] = {}


class UpdateLedgerEntry(_Command, frozen=True, tag="update_ledger_entry"):
    id: str
    metadata: dict[str, str | None] = {}


class CreateBalanceMonitor(_Command, frozen=True, tag="create_balance_monitor"):
    ledger_account_id: str
    field: MonitoredField
    operator: MonitorOperator
    value: int
    description: str | None = None
    metadata: dict[str, str] = {}


class UpdateBalanceMonitor(_Command, frozen=True, tag="update_balance_monitor"):
    id: str
    description: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] = {}


class DeleteBalanceMonitor(_Command, frozen=True, tag="delete_balance_monitor"):
    id: str


class CreateWebhookEndpoint(_Command, frozen=True, tag="create_webhook_endpoint"):
    url: str
    description: str | None = None


class UpdateWebhookEndpoint(_Command, frozen=True, tag="update_webhook_endpoint"):
    id: str
    url: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET


class DeleteWebhookEndpoint(_Command, frozen=True, tag="delete_webhook_endpoint"):
    id: str


class RecordWebhookDelivery(_Command, frozen=True, tag="record_webhook_delivery"):
    """How far an endpoint has come; the fields are those of its row."""

    id: str
    delivered_seq: int
    delivered_ordinal: int
    delivered_at_us: int
    attempts: int = 0
    failing_since_us: int | None = None
    last_error: str | None = None
    dead_event_id: str | None = None
    """The last event was not delivered but given up."""


class RecordWebhookRedelivery(_Command, frozen=True, tag="record_webhook_redelivery"):
    id: str
    """Of the dead letter that was delivered after all."""


class CreateLedgerAccountSettlement(_Command, frozen=True, tag="create_ledger_account_settlement"):
    settled_ledger_account_id: str
    contra_ledger_account_id: str
    entries_per_step: int
    """How many entries one command looks at; in the command, so that it stays as it was."""
    status: SettlementStatus = SettlementStatus.PENDING
    """What it is to become: pending, posted or drafting."""
    effective_at_upper_bound_us: int | None = None
    """Exclusive; None: the time of the write."""
    allows_either_direction: bool = False
    skips_transaction: bool = False
    description: str | None = None
    metadata: dict[str, str] = {}

    def is_exclusive(self) -> bool:
        return self.status is not SettlementStatus.DRAFTING


class UpdateLedgerAccountSettlement(_Command, frozen=True, tag="update_ledger_account_settlement"):
    id: str
    entries_per_step: int
    status: SettlementStatus | UnsetType = UNSET
    """Posted or archived."""
    description: str | UnsetType | None = UNSET
    skips_transaction: bool | UnsetType = UNSET
    metadata: dict[str, str | None] = {}

    def is_exclusive(self) -> bool:
        """Archived, it asks what is held; posted, it changes a transaction which the step in flight
        before it may create, and which only the database can show."""
        return self.status is not UNSET


class ContinueLedgerAccountSettlement(
    _Command, frozen=True, tag="continue_ledger_account_settlement"
):
    """The next step of one that is `processing` or `archiving`; of any other, nothing."""

    id: str
    entries_per_step: int

    def is_exclusive(self) -> bool:
        return True


class ChangeSettlementEntries(_Command, frozen=True, tag="change_settlement_entries"):
    """Put entries into a draft, and take entries out of it."""

    id: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


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


class CreateLedgerAccountStatement(_Command, frozen=True, tag="create_ledger_account_statement"):
    ledger_account_id: str
    lower_bound_us: int
    """Inclusive."""
    upper_bound_us: int
    """Exclusive; not below the lower one."""
    description: str | None = None
    metadata: dict[str, str] = {}

    def is_exclusive(self) -> bool:
        return True


Command = (
    CreateApiKey
    | RevokeApiKey
    | CreateLedger
    | UpdateLedger
    | DeleteLedger
    | CreateLedgerAccount
    | UpdateLedgerAccount
    | DeleteLedgerAccount
    | CreateLedgerAccountCategory
    | UpdateLedgerAccountCategory
    | DeleteLedgerAccountCategory
    | AddLedgerAccountToCategory
    | RemoveLedgerAccountFromCategory
    | NestLedgerAccountCategory
    | UnnestLedgerAccountCategory
    | CreateLedgerTransaction
    | UpdateLedgerTransaction
    | PartiallyPostLedgerTransaction
    | ReverseLedgerTransaction
    | UpdateLedgerEntry
    | CreateBalanceMonitor
    | UpdateBalanceMonitor
    | DeleteBalanceMonitor
    | CreateWebhookEndpoint
    | UpdateWebhookEndpoint
    | DeleteWebhookEndpoint
    | RecordWebhookDelivery
    | RecordWebhookRedelivery
    | CreateLedgerAccountSettlement
    | UpdateLedgerAccountSettlement
    | ContinueLedgerAccountSettlement
    | ChangeSettlementEntries
    | CreateBulkRequest
    | QueueLedgerTransaction
    | ApplyQueued
    | RefuseQueued
    | CreateLedgerAccountStatement
)
