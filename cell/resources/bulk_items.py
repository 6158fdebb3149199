"""Rows of a bulk request to the commands that they ask for, or to the errors that they are not.

A row that is malformed fails by itself, as one that a rule refuses does: the others go on.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from cell import strict_json
from cell.errors import ApiError
from cell.ledger.commands import BulkError, BulkItem, DeleteLedgerAccount, Queueable
from cell.resources import ledger_accounts, ledger_transaction_bodies
from cell.resources.ledger_transaction_bodies import require_deferrable
from cell.wellformed import parse_uuid


class ActionType(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class ResourceType(StrEnum):
    LEDGER_ACCOUNT = "ledger_account"
    LEDGER_TRANSACTION = "ledger_transaction"


class _Named(msgspec.Struct, frozen=True):
    id: str


def _create_account(row: object) -> Queueable:
    body = strict_json.convert(row, ledger_accounts.CreateBody)
    return ledger_accounts.create_command(body)


def _update_account(row: object) -> Queueable:
    body = strict_json.convert(row, ledger_accounts.UpdateBody)
    return ledger_accounts.update_command(_id(row), body)


def _delete_account(row: object) -> Queueable:
    return DeleteLedgerAccount(id=_id(row))


def _create_transaction(row: object) -> Queueable:
    body = strict_json.convert(row, ledger_transaction_bodies.CreateBody)
    require_deferrable(body)
    return ledger_transaction_bodies.create_command(body)


def _update_transaction(row: object) -> Queueable:
    body = strict_json.convert(row, ledger_transaction_bodies.UpdateBody)
    require_deferrable(body)
    return ledger_transaction_bodies.update_command(_id(row), body)


def _id(row: object) -> str:
    """Of the object to change: its id, where a path would take an external id, too."""
    return parse_uuid(strict_json.convert(row, _Named).id, "id")


COMMANDS: Final[Mapping[tuple[ActionType, ResourceType], Callable[[Any], Queueable]]] = {
    (ActionType.CREATE, ResourceType.LEDGER_ACCOUNT): _create_account,
    (ActionType.UPDATE, ResourceType.LEDGER_ACCOUNT): _update_account,
    (ActionType.DELETE, ResourceType.LEDGER_ACCOUNT): _delete_account,
    (ActionType.CREATE, ResourceType.LEDGER_TRANSACTION): _create_transaction,
    (ActionType.UPDATE, ResourceType.LEDGER_TRANSACTION): _update_transaction,
}
"""What can be done in bulk: a transaction is never deleted."""


def to_item(row: object, text: str, to_command: Callable[[Any], Queueable]) -> BulkItem:
    """The row, decoded and as the caller sent it, as an item of a bulk request."""
    try:
        return BulkItem(request_params=text, command=to_command(row))
    except ApiError as error:
        refusal = BulkError(code=error.code, message=error.message, parameter=error.parameter)
        return BulkItem(request_params=text, error=refusal)
