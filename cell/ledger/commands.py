"""The commands of a ledger: what is asked for, fully resolved and well-formed, not yet judged.

A command holds no clock and no randomness (those come with its `Stamp`), so that the journal's copy
of it can be re-executed. In updates an absent field is UNSET and means "as it was".
"""

import msgspec
from msgspec import UNSET, UnsetType

from cell.ledger.model import Direction, MonitoredField, MonitorOperator, Status


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="command"):
    """Encoded as an object with its name, absent fields left out."""

    def is_exclusive(self) -> bool:
        """Is it to be decided alone, with nothing in flight? So are all that ask a question."""
        return False


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
    | CreateLedgerTransaction
    | UpdateLedgerTransaction
    | UpdateLedgerEntry
    | CreateBalanceMonitor
    | UpdateBalanceMonitor
    | DeleteBalanceMonitor
    | CreateWebhookEndpoint
    | UpdateWebhookEndpoint
    | DeleteWebhookEndpoint
    | RecordWebhookDelivery
    | RecordWebhookRedelivery
    | CreateLedgerAccountStatement
)
