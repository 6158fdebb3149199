"""The routes of the tenant API, and how the first answer to each command of a POST is rendered.

A new resource is a file in `cell/resources/` and its line in each of the two lists.
"""

from typing import Final

from cell import openapi
from cell.calls import FirstAnswer
from cell.ledger.commands import Command
from cell.resources import (
    bulk_requests,
    bulk_results,
    events,
    ledger_account_balance_monitors,
    ledger_account_categories,
    ledger_account_settlements,
    ledger_account_statements,
    ledger_accounts,
    ledger_entries,
    ledger_transaction_versions,
    ledger_transactions,
    ledgers,
    ping,
    webhook_endpoints,
)

_RESOURCES: Final = (
    *ping.ROUTES,
    *ledgers.ROUTES,
    *ledger_accounts.ROUTES,
    *ledger_account_categories.ROUTES,
    *ledger_transactions.ROUTES,
    *ledger_transaction_versions.ROUTES,
    *ledger_entries.ROUTES,
    *ledger_account_balance_monitors.ROUTES,
    *events.ROUTES,
    *webhook_endpoints.ROUTES,
    *ledger_account_settlements.ROUTES,
    *bulk_requests.ROUTES,
    *bulk_results.ROUTES,
    *ledger_account_statements.ROUTES,
)
ROUTES: Final = (*_RESOURCES, openapi.described(_RESOURCES))
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    **ledgers.FIRST_ANSWERS,
    **ledger_accounts.FIRST_ANSWERS,
    **ledger_account_categories.FIRST_ANSWERS,
    **ledger_transactions.FIRST_ANSWERS,
    **ledger_account_balance_monitors.FIRST_ANSWERS,
    **ledger_account_settlements.FIRST_ANSWERS,
    **bulk_requests.FIRST_ANSWERS,
    **bulk_results.FIRST_ANSWERS,
    **ledger_account_statements.FIRST_ANSWERS,
}
