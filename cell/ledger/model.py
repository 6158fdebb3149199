"""The rows of a ledger as frozen values: what the tables hold, the journal keeps, and rules return.

The fields of each row are the columns of its table, in the table's order; times are microseconds
since 1970 UTC; ids are lower-case UUID strings. Encoded as tagged arrays, so that an after-image in
the journal is compact and self-describing. Adding a column is a new journal format.
"""

from enum import StrEnum
from typing import NewType

import msgspec

TenantId = NewType("TenantId", str)


class Direction(StrEnum):
    """The side of an entry, and of an account's normal balance."""

    CREDIT = "credit"
    DEBIT = "debit"


class Status(StrEnum):
    """Status of a ledger transaction; posted and archived are terminal."""

    PENDING = "pending"
    POSTED = "posted"
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
