"""The rules of balance monitors (pure): a condition on an account, and when it begins or ends.

A monitor keeps the state it was last in. Whoever writes an account's balances asks `transitions`
for the monitors whose state that changes, and adds them to the effects of the same command: a
transition is as durable as the write that caused it, and a state that lasts leaves no trace.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ledger import balances
from cell.ledger.commands import CreateBalanceMonitor, DeleteBalanceMonitor, UpdateBalanceMonitor
from cell.ledger.model import (
    AccountBalances,
    BalanceMonitor,
    Direction,
    Effects,
    LedgerAccount,
    MonitoredField,
    MonitorOperator,
    Stamp,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, Relation, note_needs
from cell.ledger.rules import State, apply, live_account, merged_metadata

MONITORS_OF_ACCOUNT: Final = Relation(BalanceMonitor, by="ledger_account_id")
MONITORS_PER_ACCOUNT_MAX: Final = 50
"""Each is evaluated with every write to its account."""

_COMPARISONS: Final[Mapping[MonitorOperator, Callable[[int, int], bool]]] = {
    MonitorOperator.LESS_THAN: int.__lt__,
    MonitorOperator.LESS_THAN_OR_EQUALS: int.__le__,
    MonitorOperator.EQUALS: int.__eq__,
    MonitorOperator.GREATER_THAN_OR_EQUALS: int.__ge__,
    MonitorOperator.GREATER_THAN: int.__gt__,
}


def is_triggered(
    monitor: BalanceMonitor | CreateBalanceMonitor, of: AccountBalances, normal: Direction
) -> bool:
    """Does the monitor's condition hold on these balances?"""
    if monitor.field is MonitoredField.LOCK_VERSION:
        found = of.lock_version
    elif monitor.field is MonitoredField.PENDING:
        found = balances.pending(of, normal).amount
    elif monitor.field is MonitoredField.POSTED:
        found = balances.posted(of, normal).amount
    else:
        found = balances.available(of, normal).amount
    return _COMPARISONS[monitor.operator](found, monitor.value)


def transitions(
    accounts: Iterable[LedgerAccount],
    after: Mapping[str, AccountBalances],
    state: State,
    stamp: Stamp,
) -> tuple[BalanceMonitor, ...]:
    """The monitors of these accounts, which all have some, that the write brings to another state.

    `after` holds the balances after the write, by account.
    """
    changed: list[BalanceMonitor] = []
    for account in accounts:
        for monitor in state.related(MONITORS_OF_ACCOUNT, account.id):
            holds = is_triggered(monitor, after[account.id], account.normal_balance)
            if holds is not monitor.is_triggered:
                changed.append(
                    replace(monitor, is_triggered=holds, state_since_us=stamp.at_us, seq=stamp.seq)
                )
    return tuple(changed)


@note_needs.register
def _needs_of_new(command: CreateBalanceMonitor, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts.add((tenant_id, command.ledger_account_id))
    # A write to the account that comes later in the same batch finds the new monitor in it.
    needs.relation(MONITORS_OF_ACCOUNT, tenant_id, command.ledger_account_id)


@apply.register
def _create(command: CreateBalanceMonitor, state: State, stamp: Stamp) -> Effects:
    try:
        account = live_account(state, command.ledger_account_id)
    except NotFound as exc:
        message = f"no ledger account {command.ledger_account_id}"
        raise Unprocessable(message, "ledger_account_id") from exc
    if account.monitor_count >= MONITORS_PER_ACCOUNT_MAX:
        raise Unprocessable(
            f"a ledger account has at most {MONITORS_PER_ACCOUNT_MAX} balance monitors",
            "ledger_account_id",
        )
    now = state.balances(account.id)
    monitor = BalanceMonitor(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        ledger_account_id=account.id,
        description=command.description,
        field=command.field,
        operator=command.operator,
        value=command.value,
        is_triggered=is_triggered(command, now, account.normal_balance),
        state_since_us=stamp.at_us,
        metadata=command.metadata,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    counted = replace(account, monitor_count=account.monitor_count + 1, seq=stamp.seq)
    # The balances stay as they are; they are in the record because the first answer shows them.
    return Effects(inserted=(monitor,), updated=(counted, replace(now, seq=stamp.seq)))


@note_needs.register(UpdateBalanceMonitor | DeleteBalanceMonitor)
def _needs_of_monitor(
    command: UpdateBalanceMonitor | DeleteBalanceMonitor, tenant_id: TenantId, needs: Needs
) -> None:
    needs.row(BalanceMonitor, tenant_id, command.id)


@apply.register
def _update(command: UpdateBalanceMonitor, state: State, stamp: Stamp) -> Effects:
    monitor = state.row(BalanceMonitor, command.id)
    if monitor is None or monitor.discarded_at_us is not None:
        raise NotFound(f"no ledger account balance monitor {command.id}")
    changed = replace(
        monitor,
        description=monitor.description if command.description is UNSET else command.description,
        metadata=merged_metadata(monitor.metadata, command.metadata),
    )
    if changed == monitor:
        return Effects(updated=(monitor,))
    return Effects(updated=(replace(changed, updated_at_us=stamp.at_us, seq=stamp.seq),))


def _needs_of_account(command: DeleteBalanceMonitor, state: State, needs: Needs) -> None:
    monitor = state.row(BalanceMonitor, command.id)
    if monitor is not None:
        needs.accounts.add((state.tenant_id, monitor.ledger_account_id))


FURTHER_NEEDS[DeleteBalanceMonitor] = _needs_of_account


@apply.register
def _delete(command: DeleteBalanceMonitor, state: State, stamp: Stamp) -> Effects:
    monitor = state.row(BalanceMonitor, command.id)
    if monitor is None:
        raise NotFound(f"no ledger account balance monitor {command.id}")
    if monitor.discarded_at_us is not None:
        return Effects(updated=(monitor,))
    account = state.account(monitor.ledger_account_id)
    assert account is not None, "accounts are never deleted but discarded"
    gone = replace(monitor, discarded_at_us=stamp.at_us, updated_at_us=stamp.at_us, seq=stamp.seq)
    counted = replace(account, monitor_count=account.monitor_count - 1, seq=stamp.seq)
    return Effects(updated=(gone, counted))
