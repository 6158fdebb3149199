"""The rules of the ledger: a command, the state and a stamp in; the rows that change out (pure).

Each rule is a ladder: one check a line, in order of precedence, the first broken one raised as
`NotFound` or `Unprocessable` with the parameter it is about. Nothing here awaits, reads a clock or
logs. The rules of ledger transactions are in `transactions.py`.

A command that changes nothing (a repeated delete, say) returns the row as it is; its `seq` is then
not the stamp's, and nothing is recorded.
"""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, Final, Protocol, TypeVar

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ledger import commands
from cell.ledger.category_graph import MEMBERSHIPS, memberships_of_new
from cell.ledger.model import (
    AccountBalances,
    ApiKey,
    Effects,
    Ledger,
    LedgerAccount,
    LedgerAccountCategory,
    LedgerEntry,
    LedgerTransaction,
    Row,
    Stamp,
    TenantId,
)
from cell.ledger.needs import Needs, Question, Relation, note_needs

AnyRow = TypeVar("AnyRow", bound=Row)

METADATA_KEYS_MAX: Final = 200
"""Keys an object may hold; merging patches could otherwise grow a row for ever."""


class State(Protocol):
    """What the rules may ask about one tenant; objects of other tenants do not exist here."""

    tenant_id: TenantId

    def ledger(self, id: str) -> Ledger | None: ...
    def account(self, id: str) -> LedgerAccount | None: ...
    def balances(self, account_id: str) -> AccountBalances: ...
    def transaction(self, id: str) -> LedgerTransaction | None: ...
    def entry(self, id: str) -> LedgerEntry | None: ...
    def live_entries(self, transaction_id: str) -> Sequence[LedgerEntry]: ...
    def account_with_external_id(self, ledger_id: str, external_id: str) -> str | None:
        """Id of the live account of the ledger that holds it."""

    def transaction_with_external_id(self, ledger_id: str, external_id: str) -> str | None:
        """Id of the pending or posted transaction of the ledger that holds it."""

    def row(self, kind: type[AnyRow], id: str) -> AnyRow | None:
        """A row of any other table."""

    def related(self, relation: Relation, key: str) -> Sequence[Any]:
        """The rows of the relation, in the order of their ids, then as this batch wrote them."""

    def answer(self, question: Question) -> Any: ...


@singledispatch
def apply(command: object, state: State, stamp: Stamp) -> Effects:
    """The rows that `command` changes; raises NotFound or Unprocessable when a rule forbids it."""
    raise AssertionError(f"no rule for {type(command).__name__}")


@note_needs.register(commands.CreateApiKey | commands.RevokeApiKey)
def _needs_of_api_key(
    command: commands.CreateApiKey | commands.RevokeApiKey, tenant_id: TenantId, needs: Needs
) -> None:
    needs.row(ApiKey, tenant_id, command.id)


@apply.register
def _create_api_key(command: commands.CreateApiKey, state: State, stamp: Stamp) -> Effects:
    known = state.row(ApiKey, command.id)
    if known is not None and known.secret_sha256 != command.secret_sha256:
        raise Unprocessable(f"API key {command.id} exists with another secret", "id")
    if known is not None:
        return Effects(updated=(known,))
    key = ApiKey(
        tenant_id=state.tenant_id,
        id=command.id,
        secret_sha256=command.secret_sha256,
        created_at_us=stamp.at_us,
        revoked_at_us=None,
        seq=stamp.seq,
    )
    return Effects(inserted=(key,))


@apply.register
def _revoke_api_key(command: commands.RevokeApiKey, state: State, stamp: Stamp) -> Effects:
    key = state.row(ApiKey, command.id)
    if key is None:
        raise NotFound(f"no API key {command.id}")
    if key.revoked_at_us is not None:
        return Effects(updated=(key,))
    return Effects(updated=(replace(key, revoked_at_us=stamp.at_us, seq=stamp.seq),))


@note_needs.register
def _needs_of_new_ledger(command: commands.CreateLedger, tenant_id: TenantId, needs: Needs) -> None:
    """A new ledger refers to nothing."""


@note_needs.register(commands.UpdateLedger | commands.DeleteLedger)
def _needs_of_ledger(
    command: commands.UpdateLedger | commands.DeleteLedger, tenant_id: TenantId, needs: Needs
) -> None:
    needs.ledgers.add((tenant_id, command.id))


@apply.register
def _create_ledger(command: commands.CreateLedger, state: State, stamp: Stamp) -> Effects:
    ledger = Ledger(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        name=command.name,
        description=command.description,
        metadata=command.metadata,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    return Effects(inserted=(ledger,))


@apply.register
def _update_ledger(command: commands.UpdateLedger, state: State, stamp: Stamp) -> Effects:
    ledger = live_ledger(state, command.id)
    changed = replace(
        ledger,
        name=ledger.name if command.name is UNSET else command.name,
        description=ledger.description if command.description is UNSET else command.description,
        metadata=merged_metadata(ledger.metadata, command.metadata),
    )
    if changed == ledger:
        return Effects(updated=(ledger,))
    return Effects(updated=(replace(changed, updated_at_us=stamp.at_us, seq=stamp.seq),))


@apply.register
def _delete_ledger(command: commands.DeleteLedger, state: State, stamp: Stamp) -> Effects:
    ledger = state.ledger(command.id)
    if ledger is None:
        raise NotFound(f"no ledger {command.id}")
    if ledger.discarded_at_us is not None:
        return Effects(updated=(ledger,))
    gone = replace(ledger, discarded_at_us=stamp.at_us, updated_at_us=stamp.at_us, seq=stamp.seq)
    return Effects(updated=(gone,))


@note_needs.register
def _needs_of_new_account(
    command: commands.CreateLedgerAccount, tenant_id: TenantId, needs: Needs
) -> None:
    needs.ledgers.add((tenant_id, command.ledger_id))
    if command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))
    for category_id in command.category_ids:
        needs.row(LedgerAccountCategory, tenant_id, category_id)


@note_needs.register
def _needs_of_account(
    command: commands.UpdateLedgerAccount, tenant_id: TenantId, needs: Needs
) -> None:
    needs.accounts.add((tenant_id, command.id))
    if command.external_id is not UNSET and command.external_id is not None:
        needs.account_external_ids.add((tenant_id, command.external_id))


@note_needs.register
def _needs_of_gone_account(
    command: commands.DeleteLedgerAccount, tenant_id: TenantId, needs: Needs
) -> None:
    needs.accounts.add((tenant_id, command.id))
    needs.relation(MEMBERSHIPS, tenant_id, command.id)


@apply.register
def _create_account(command: commands.CreateLedgerAccount, state: State, stamp: Stamp) -> Effects:
    ledger = live_ledger(state, command.ledger_id)
    _require_free_account_external_id(state, ledger.id, command.external_id, None)
    account = LedgerAccount(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        ledger_id=ledger.id,
        name=command.name,
        description=command.description,
        normal_balance=command.normal_balance,
        currency=command.currency,
        currency_exponent=command.currency_exponent,
        external_id=command.external_id,
        ledgerable_type=command.ledgerable_type,
        ledgerable_id=command.ledgerable_id,
        metadata=command.metadata,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    zero = AccountBalances(
        tenant_id=state.tenant_id,
        ledger_account_id=account.id,
        pending_debits=0,
        pending_credits=0,
        posted_debits=0,
        posted_credits=0,
        lock_version=0,
        seq=stamp.seq,
    )
    members = memberships_of_new(state, account, command.category_ids, stamp)
    return Effects(inserted=(account, zero, *members))


@apply.register
def _update_account(command: commands.UpdateLedgerAccount, state: State, stamp: Stamp) -> Effects:
    account = live_account(state, command.id)
    external_id = account.external_id if command.external_id is UNSET else command.external_id
    if external_id != account.external_id:
        _require_free_account_external_id(state, account.ledger_id, external_id, account.id)
    changed = replace(
        account,
        name=account.name if command.name is UNSET else command.name,
        description=account.description if command.description is UNSET else command.description,
        external_id=external_id,
        metadata=merged_metadata(account.metadata, command.metadata),
    )
    if changed == account:
        return Effects(updated=(account,))
    return Effects(updated=(replace(changed, updated_at_us=stamp.at_us, seq=stamp.seq),))


@apply.register
def _delete_account(command: commands.DeleteLedgerAccount, state: State, stamp: Stamp) -> Effects:
    account = state.account(command.id)
    if account is None:
        raise NotFound(f"no ledger account {command.id}")
    if account.discarded_at_us is not None:
        return Effects(updated=(account,))
    gone = replace(account, discarded_at_us=stamp.at_us, updated_at_us=stamp.at_us, seq=stamp.seq)
    # It leaves its categories, whose sums so need not ask whether an account is still there.
    left = tuple(
        replace(member, discarded_at_us=stamp.at_us, seq=stamp.seq)
        for member in state.related(MEMBERSHIPS, account.id)
    )
    return Effects(updated=(gone, *left))


@note_needs.register
def _needs_of_entry(command: commands.UpdateLedgerEntry, tenant_id: TenantId, needs: Needs) -> None:
    needs.entries.add((tenant_id, command.id))


@apply.register
def _update_entry(command: commands.UpdateLedgerEntry, state: State, stamp: Stamp) -> Effects:
    entry = state.entry(command.id)
    if entry is None:
        raise NotFound(f"no ledger entry {command.id}")
    metadata = merged_metadata(entry.metadata, command.metadata)
    if metadata == entry.metadata:
        return Effects(updated=(entry,))
    changed = replace(entry, metadata=metadata, updated_at_us=stamp.at_us, seq=stamp.seq)
    return Effects(updated=(changed,))


def live_ledger(state: State, id: str) -> Ledger:
    """The ledger, unless it is unknown or discarded."""
    ledger = state.ledger(id)
    if ledger is None or ledger.discarded_at_us is not None:
        raise NotFound(f"no ledger {id}", "ledger_id")
    return ledger


def live_account(state: State, id: str) -> LedgerAccount:
    """The account, unless it or its ledger is unknown or discarded."""
    account = state.account(id)
    if account is None or account.discarded_at_us is not None:
        raise NotFound(f"no ledger account {id}")
    live_ledger(state, account.ledger_id)
    return account


def merged_metadata(present: dict[str, str], patch: dict[str, str | None]) -> dict[str, str]:
    """`patch` laid over `present`; a key with "" or None is removed."""
    if not patch:
        return present
    merged = {**present, **patch}
    kept = {key: value for key, value in merged.items() if value}
    if len(kept) > METADATA_KEYS_MAX:
        raise Unprocessable(f"an object may hold {METADATA_KEYS_MAX} metadata keys", "metadata")
    return kept


def _require_free_account_external_id(
    state: State, ledger_id: str, external_id: str | None, own_id: str | None
) -> None:
    if external_id is None:
        return
    holder = state.account_with_external_id(ledger_id, external_id)
    if holder is not None and holder != own_id:
        raise Unprocessable(
            f"external_id {external_id} is taken by another account of the ledger", "external_id"
        )
