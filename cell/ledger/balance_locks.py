"""Balance locks: conditions on a balance as it would be after a whole ledger transaction (pure)."""

from collections.abc import Callable
from typing import Final

from cell.errors import BalanceLockBroken
from cell.ledger import balances
from cell.ledger.balances import Sums
from cell.ledger.commands import BalanceLock, CategoryBalanceLock, EntryDraft
from cell.ledger.model import AccountBalances, Direction, LedgerAccount

_CONDITIONS: Final[tuple[tuple[str, Callable[[int, int], bool]], ...]] = (
    ("gt", int.__gt__),
    ("gte", int.__ge__),
    ("lt", int.__lt__),
    ("lte", int.__le__),
    ("eq", int.__eq__),
)


def require_entry_locks(
    draft: EntryDraft, after: AccountBalances, account: LedgerAccount, parameter: str
) -> None:
    """Raise BalanceLockBroken unless every lock of the entry holds on its account's balances."""
    require_locks(draft, after, account.normal_balance, f"ledger account {account.id}", parameter)


def require_locks(
    locks: EntryDraft | CategoryBalanceLock,
    after: Sums,
    normal: Direction,
    whose: str,
    parameter: str,
) -> None:
    """Raise BalanceLockBroken unless all three hold on the sums."""
    for name, lock, balance in (
        ("pending", locks.pending_lock, balances.pending),
        ("posted", locks.posted_lock, balances.posted),
        ("available", locks.available_lock, balances.available),
    ):
        if lock is None:
            continue
        amount = balance(after, normal).amount
        broken = _broken_condition(lock, amount)
        if broken is not None:
            message = f"the {name} balance of {whose} would be {amount}, not {broken}"
            raise BalanceLockBroken(message, parameter)


def _broken_condition(lock: BalanceLock, amount: int) -> str | None:
    """The first condition that does not hold for the amount, in words; None where all do."""
    for name, holds in _CONDITIONS:
        bound: int | None = getattr(lock, name)
        if bound is not None and not holds(amount, bound):
            return f"{name} {bound}"
    return None
