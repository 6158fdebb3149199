"""The tenant tables, in the order in which a tenant's rows can be written one after another.

The one list of what belongs to a tenant: a table that is missing here would neither be written by
the sequencer nor move with its tenant; a test compares it with the database.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, get_origin

import msgspec

from cell.ledger.model import (
    AccountBalances,
    ApiKey,
    BalanceMonitor,
    BulkRequest,
    BulkResult,
    CategoryMember,
    CategoryNesting,
    Ledger,
    LedgerAccount,
    LedgerAccountCategory,
    LedgerAccountSettlement,
    LedgerAccountStatement,
    LedgerEntry,
    LedgerTransaction,
    LedgerTransactionVersion,
    Row,
    SettledAccount,
    SettlementEntry,
    WebhookDeadLetter,
    WebhookEndpoint,
)


@dataclass(frozen=True)
class Table:
    name: str
    row: type[Row]
    """Its fields are the table's columns, in order."""
    key: str
    """The column that identifies a row within its tenant."""

    free_text: tuple[str, ...] = ()
    """Columns whose text the caller chose; all other text is an id or a word of ours."""

    @cached_property
    def tag(self) -> str:
        """The word that marks the table's rows in the journal."""
        return str(self.row.__struct_config__.tag)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(field.name for field in msgspec.structs.fields(self.row))

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Columns that hold JSON objects."""
        fields = msgspec.structs.fields(self.row)
        return tuple(field.name for field in fields if get_origin(field.type) is dict)


ROW_TABLES: Final = (
    Table("api_keys", ApiKey, "id"),
    Table("ledgers", Ledger, "id", free_text=("name", "description")),
    Table(
        "ledger_accounts",
        LedgerAccount,
        "id",
        free_text=(
            "name",
            "description",
            "currency",
            "external_id",
            "ledgerable_type",
            "ledgerable_id",
        ),
    ),
    Table("ledger_account_balances", AccountBalances, "ledger_account_id"),
    Table(
        "ledger_transactions",
        LedgerTransaction,
        "id",
        free_text=(
            "description",
            "external_id",
            "ledgerable_type",
            "ledgerable_id",
            "archived_reason",
        ),
    ),
    Table("ledger_entries", LedgerEntry, "id", free_text=("currency",)),
    Table("ledger_account_balance_monitors", BalanceMonitor, "id", free_text=("description",)),
    Table(
        "webhook_endpoints",
        WebhookEndpoint,
        "id",
        free_text=("url", "description", "last_error"),
    ),
    Table("webhook_dead_letters", WebhookDeadLetter, "id", free_text=("last_error",)),
    Table(
        "ledger_account_settlements",
        LedgerAccountSettlement,
        "id",
        free_text=("description", "currency"),
    ),
    Table("settlement_entries", SettlementEntry, "id"),
    Table("settled_accounts", SettledAccount, "id"),
    Table(
        "ledger_transaction_versions",
        LedgerTransactionVersion,
        "id",
        free_text=(
            "description",
            "external_id",
            "ledgerable_type",
            "ledgerable_id",
            "archived_reason",
        ),
    ),
    Table(
        "ledger_account_categories",
        LedgerAccountCategory,
        "id",
        free_text=("name", "description", "currency", "external_id"),
    ),
    Table("category_members", CategoryMember, "id"),
    Table("category_nestings", CategoryNesting, "id"),
    Table("bulk_requests", BulkRequest, "id"),
    Table(
        "bulk_results",
        BulkResult,
        "id",
        free_text=("request_params", "command", "error_message", "error_parameter"),
    ),
    Table(
        "ledger_account_statements",
        LedgerAccountStatement,
        "id",
        free_text=("description", "currency"),
    ),
)
"""Tables whose rows the rules return."""

DERIVED_TABLES: Final = ("ledger_account_day_shifts", "ledger_account_bare_versions")
"""What the writer derives from the entries as it writes them; see `ledger/history.py`."""

PROJECTED_TABLES: Final = ("event_watermarks", "event_index")
"""Worked out from the journal, and not of it: what is not there is projected again.

The watermark says that the index is complete up to there, so it is copied first: a copy may be
resumed from a later snapshot, which has more of the index.
"""

TENANT_TABLES: Final = (
    *(table.name for table in ROW_TABLES),
    *DERIVED_TABLES,
    "idempotency_keys",
    "journal",
    *PROJECTED_TABLES,
)
"""Every table that holds a tenant's rows, but for its head."""

COMPARED_TABLES: Final = tuple(name for name in TENANT_TABLES if name not in PROJECTED_TABLES)
"""Two cells that hold the same tenant at the same sequence hold the same rows of these."""
