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
    ledger_accounts,
    ledger_entries,
    ledger_transactions,
    ledgers,
    ping,
)

_RESOURCES: Final = (
    *ping.ROUTES,
    *ledgers.ROUTES,
    *ledger_accounts.ROUTES,
    *ledger_transactions.ROUTES,
    *ledger_entries.ROUTES,
    *bulk_requests.ROUTES,
    *bulk_results.ROUTES,
)
ROUTES: Final = (*_RESOURCES, openapi.described(_RESOURCES))
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    **ledgers.FIRST_ANSWERS,
    **ledger_accounts.FIRST_ANSWERS,
    **ledger_transactions.FIRST_ANSWERS,
    **bulk_requests.FIRST_ANSWERS,
    **bulk_results.FIRST_ANSWERS,
}
