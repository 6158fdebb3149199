"""The rows of a ledger as frozen values: what the tables hold, the journal keeps, and rules return.

The fields of each row are the columns of its table, in the table's order; times are microseconds
since 1970 UTC; ids are lower-case UUID strings. Encoded as tagged arrays, so that an after-image in
the journal is compact and self-describing. A column that is added later stands behind `seq` and has
a default, so that older journals still read; any other change of a row is a new journal format.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, NewType

import msgspec

if TYPE_CHECKING:
    from cell.ledger.commands import Command

TenantId = NewType("TenantId", str)


class Direction(StrEnum):
    """The side of an entry, and of an account's normal balance."""

    CREDIT = "credit"
    DEBIT = "debit"

    @property
    def opposite(self) -> "Direction":
        return Direction.DEBIT if self is Direction.CREDIT else Direction.CREDIT


class Status(StrEnum):
    """Status of a ledger transaction; posted and archived are terminal."""

    PENDING = "pending"
    POSTED = "posted"
    ARCHIVED = "archived"


class MonitoredField(StrEnum):
    """What a balance monitor watches of its account."""

    AVAILABLE = "available_balance_amount"
    PENDING = "pending_balance_amount"
    POSTED = "posted_balance_amount"
    LOCK_VERSION = "ledger_account_lock_version"


class MonitorOperator(StrEnum):
    """How a balance monitor compares the field with its value."""

    LESS_THAN = "less_than"
    LESS_THAN_OR_EQUALS = "less_than_or_equals"
    EQUALS = "equals"
    GREATER_THAN_OR_EQUALS = "greater_than_or_equals"
    GREATER_THAN = "greater_than"


class SettlementStatus(StrEnum):
    """Status of a ledger account settlement; posted and archived are terminal."""

    DRAFTING = "drafting"
    """Holds what the caller puts in; nothing is gathered."""
    PROCESSING = "processing"
    """Gathering, step by step."""
    PENDING = "pending"
    POSTED = "posted"
    ARCHIVING = "archiving"
    """Releasing its entries, step by step."""
    ARCHIVED = "archived"


class ApiKey(msgspec.Struct, frozen=True, array_like=True, tag="api_key", gc=False, kw_only=True):
    tenant_id: TenantId
    id: str
    secret_sha256: str
    """Hex of the secret's SHA-256; the secret itself is kept nowhere."""
    created_at_us: int
    revoked_at_us: int | None
    seq: int


class Ledger(msgspec.Struct, frozen=True, array_like=True, tag="ledger", gc=False, kw_only=True):
    tenant_id: TenantId
    id: str
    name: str
    description: str | None
    metadata: dict[str, str]
    created_at_us: int
    updated_at_us: int
    discarded_at_us: int | None
    seq: int
    """Tenant sequence of the row's last change; so in every row."""


class LedgerAccount(
    msgspec.Struct, frozen=True, array_like=True, tag="account", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_id: str
    name: str
    description: str | None
    normal_balance: Direction
    currency: str
    currency_exponent: int
    external_id: str | None
    ledgerable_type: str | None
    ledgerable_id: str | None
    metadata: dict[str, str]
    created_at_us: int
    updated_at_us: int
    discarded_at_us: int | None
    seq: int
    monitor_count: int = 0
    """Live balance monitors: only accounts that have any make a write look for them."""


class AccountBalances(
    msgspec.Struct, frozen=True, array_like=True, tag="balances", gc=False, kw_only=True
):
    """Accumulators of an account over its live entries, in the currency's smallest unit."""

    tenant_id: TenantId
    ledger_account_id: str
    pending_debits: int
    """Sum of pending debits only; posted ones are not in it."""
    pending_credits: int
    posted_debits: int
    posted_credits: int
    lock_version: int
    """Grows by one with each ledger transaction written to the account."""
    seq: int


class LedgerTransaction(
    msgspec.Struct, frozen=True, array_like=True, tag="transaction", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_id: str
    status: Status
    description: str | None
    external_id: str | None
    ledgerable_type: str | None
    ledgerable_id: str | None
    reverses_id: str | None
    reversed_by_id: str | None
    partially_posts_id: str | None
    archived_reason: str | None
    metadata: dict[str, str]
    effective_at_us: int
    posted_at_us: int | None
    created_at_us: int
    updated_at_us: int
    version: int
    """0 at creation, plus one with each modification."""
    seq: int


class LedgerEntry(
    msgspec.Struct, frozen=True, array_like=True, tag="entry", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_transaction_id: str
    ledger_account_id: str
    direction: Direction
    status: Status
    """The transaction's status when the entry was created; never changes."""
    amount: int
    currency: str
    currency_exponent: int
    normal_balance: Direction
    """Currency, exponent and normal balance are the account's, which are immutable."""
    lock_version: int
    """The account's lock version which the entry's write produced."""
    resulting_pending_debits: int
    """The account's accumulators after the whole transaction; so the next three."""
    resulting_pending_credits: int
    resulting_posted_debits: int
    resulting_posted_credits: int
    shows_resulting_balances: bool
    """Did the caller ask to see the resulting balances on this entry?"""
    metadata: dict[str, str]
    effective_at_us: int
    created_at_us: int
    updated_at_us: int
    discarded_at_us: int | None
    discarded_lock_version: int | None
    """The account's lock version of the write that discarded the entry."""
    seq: int


class BalanceMonitor(
    msgspec.Struct, frozen=True, array_like=True, tag="monitor", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_account_id: str
    description: str | None
    field: MonitoredField
    operator: MonitorOperator
    value: int
    is_triggered: bool
    """Did the condition hold after the account's last write?"""
    state_since_us: int
    """Time of the write that made it so; the monitor's creation at first."""
    metadata: dict[str, str]
    created_at_us: int
    updated_at_us: int
    """Of what the caller can change; a transition is not an update."""
    discarded_at_us: int | None
    seq: int


class WebhookEndpoint(
    msgspec.Struct, frozen=True, array_like=True, tag="webhook_endpoint", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    url: str
    description: str | None
    delivered_seq: int
    """Sequence and ordinal of the last event that was delivered or given up, and its time."""
    delivered_ordinal: int
    delivered_at_us: int
    attempts: int
    """Failed deliveries of the event after that one."""
    failing_since_us: int | None
    """Time of the first of them."""
    last_error: str | None
    created_at_us: int
    updated_at_us: int
    discarded_at_us: int | None
    seq: int


class WebhookDeadLetter(
    msgspec.Struct, frozen=True, array_like=True, tag="dead_letter", gc=False, kw_only=True
):
    """An event that an endpoint did not take in all the attempts it had."""

    tenant_id: TenantId
    id: str
    webhook_endpoint_id: str
    event_id: str
    attempts: int
    last_error: str | None
    created_at_us: int
    redelivered_at_us: int | None
    """When it was taken after all, sent again on request."""
    seq: int


class LedgerAccountSettlement(
    msgspec.Struct, frozen=True, array_like=True, tag="settlement", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_id: str
    status: SettlementStatus
    description: str | None
    settled_ledger_account_id: str
    contra_ledger_account_id: str
    effective_at_upper_bound_us: int | None
    """Exclusive; None only where nothing is gathered."""
    allows_either_direction: bool
    skips_transaction: bool
    posts_when_gathered: bool
    """Does `processing` end in `posted`, and not in `pending`?"""
    ledger_transaction_id: str | None
    amount: int | None
    """None until everything is gathered; so the direction."""
    settlement_entry_direction: Direction | None
    """Of the settlement's own entry on the settled account."""
    currency: str
    currency_exponent: int
    metadata: dict[str, str]
    gathered_debits: int
    """Sum of the debits it holds, its own entry aside; of the credits likewise."""
    gathered_credits: int
    last_version: int | None
    """The settled account's lock version when gathering began: what came later is not gathered."""
    examined_version: int | None
    """While gathering: the account's entries up to this lock version and id were looked at."""
    examined_id: str | None
    created_at_us: int
    updated_at_us: int
    seq: int


class SettlementEntry(
    msgspec.Struct, frozen=True, array_like=True, tag="settlement_entry", gc=False, kw_only=True
):
    """A posted entry that a settlement has looked at: held by one, or open.

    One row per entry, so that no two settlements can hold it. An entry without a row was never
    looked at and is beyond its account's `SettledAccount.examined_version`.
    """

    tenant_id: TenantId
    id: str
    """The ledger entry's."""
    ledger_account_id: str
    ledger_transaction_id: str
    settlement_id: str | None
    """None: open, that is, released again or not before the bounds there were so far."""
    direction: Direction
    amount: int
    effective_at_us: int
    """Transaction, account, direction, amount and time are the entry's, which are immutable."""
    is_own: bool
    """Of the settlement's own transaction: listed with the others, never gathered."""
    seq: int


class SettledAccount(
    msgspec.Struct, frozen=True, array_like=True, tag="settled_account", gc=False, kw_only=True
):
    """How far the entries of an account have been looked at by its settlements."""

    tenant_id: TenantId
    id: str
    """The ledger account's."""
    examined_version: int
    """Every posted entry of this lock version or a smaller one has its `SettlementEntry`."""
    seq: int


class LedgerTransactionVersion(
    msgspec.Struct, frozen=True, array_like=True, tag="transaction_version", gc=False, kw_only=True
):
    """What a ledger transaction was until a change; its last version is the transaction itself."""

    tenant_id: TenantId
    id: str
    ledger_transaction_id: str
    version: int
    ledger_id: str
    status: Status
    description: str | None
    external_id: str | None
    ledgerable_type: str | None
    ledgerable_id: str | None
    reverses_id: str | None
    reversed_by_id: str | None
    partially_posts_id: str | None
    archived_reason: str | None
    metadata: dict[str, str]
    entry_metadata: dict[str, dict[str, str]]
    """Of the entries that had any, by their ids; all else of an entry never changes."""
    effective_at_us: int
    posted_at_us: int | None
    created_at_us: int
    """When the version began."""
    seq: int


class LedgerAccountCategory(
    msgspec.Struct, frozen=True, array_like=True, tag="category", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    ledger_id: str
    name: str
    description: str | None
    normal_balance: Direction
    """The side on which the category's own balances count as positive."""
    currency: str
    currency_exponent: int
    """Currency and exponent of all accounts and categories in it."""
    external_id: str | None
    metadata: dict[str, str]
    created_at_us: int
    updated_at_us: int
    discarded_at_us: int | None
    seq: int


class CategoryMember(
    msgspec.Struct, frozen=True, array_like=True, tag="category_member", gc=False, kw_only=True
):
    """A ledger account that is in a category directly."""

    tenant_id: TenantId
    id: str
    category_id: str
    ledger_account_id: str
    created_at_us: int
    discarded_at_us: int | None
    """When it was taken out; put in again, it has a new row."""
    seq: int


class CategoryNesting(
    msgspec.Struct, frozen=True, array_like=True, tag="category_nesting", gc=False, kw_only=True
):
    """A category that is directly under another one."""

    tenant_id: TenantId
    id: str
    category_id: str
    sub_category_id: str
    created_at_us: int
    discarded_at_us: int | None
    seq: int


class BulkStatus(StrEnum):
    """Status of a bulk request."""

    PENDING = "pending"
    """None of its rows is settled."""
    PROCESSING = "processing"
    COMPLETED = "completed"
    """Every row is settled: successes and failures are the total."""


class ResultStatus(StrEnum):
    """Status of a bulk result; successful and failed are terminal."""

    PENDING = "pending"
    SUCCESSFUL = "successful"
    FAILED = "failed"


class BulkRequest(
    msgspec.Struct, frozen=True, array_like=True, tag="bulk_request", gc=False, kw_only=True
):
    tenant_id: TenantId
    id: str
    action_type: str
    resource_type: str
    status: BulkStatus
    metadata: dict[str, str]
    total_count: int
    success_count: int
    failed_count: int
    created_at_us: int
    updated_at_us: int
    seq: int


class BulkResult(
    msgspec.Struct, frozen=True, array_like=True, tag="bulk_result", gc=False, kw_only=True
):
    """One row of a bulk request: what was asked for, and what became of it."""

    tenant_id: TenantId
    id: str
    request_id: str
    resource_type: str
    status: ResultStatus
    request_params: str
    """JSON of the row as the caller sent it."""
    command: str | None
    """JSON of the command to apply; None once the row is settled."""
    entity_id: str | None
    """The object that was written; None unless successful."""
    error_code: str | None
    """Why it failed; None unless it did, and so the next two."""
    error_message: str | None
    error_parameter: str | None
    created_at_us: int
    updated_at_us: int
    seq: int


class LedgerAccountStatement(
    msgspec.Struct, frozen=True, array_like=True, tag="statement", gc=False, kw_only=True
):
    """What an account's balances before two times were, at its version at that moment."""

    tenant_id: TenantId
    id: str
    ledger_id: str
    ledger_account_id: str
    description: str | None
    metadata: dict[str, str]
    normal_balance: Direction
    currency: str
    currency_exponent: int
    lower_bound_us: int
    """Inclusive."""
    upper_bound_us: int
    """Exclusive."""
    lock_version: int
    starting_pending_debits: int
    """Sum of the pending debits before the lower bound; so the next three."""
    starting_pending_credits: int
    starting_posted_debits: int
    starting_posted_credits: int
    ending_pending_debits: int
    """The same before the upper bound."""
    ending_pending_credits: int
    ending_posted_debits: int
    ending_posted_credits: int
    created_at_us: int
    updated_at_us: int
    seq: int


Row = (
    ApiKey
    | Ledger
    | LedgerAccount
    | AccountBalances
    | LedgerTransaction
    | LedgerEntry
    | LedgerAccountCategory
    | CategoryMember
    | CategoryNesting
    | BalanceMonitor
    | WebhookEndpoint
    | WebhookDeadLetter
    | LedgerAccountSettlement
    | SettlementEntry
    | SettledAccount
    | LedgerTransactionVersion
    | BulkRequest
    | BulkResult
    | LedgerAccountStatement
)


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What is resolved before the rules run: everything that is not determined by the state."""

    seq: int
    """The tenant sequence the command gets if it is applied."""
    at_us: int
    """Strictly above the tenant's last time."""
    id_base: str
    """A UUIDv7; the ids of all rows the command creates are derived from it."""


class Effects(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The rows a command changes, as they are afterwards; the answer's main row comes first."""

    inserted: tuple[Row, ...] = ()
    updated: tuple[Row, ...] = ()
    recorded_as: "Command | None" = None
    """The command for the journal, where less was left to do than was asked for."""
