"""Balance locks: conditions on a balance as it would be after a whole ledger transaction (pure)."""

from collections.abc import Callable
from typing import Final

from cell.errors import BalanceLockBroken
from cell.ledger import balances
from cell.ledger.commands import BalanceLock, EntryDraft
from cell.ledger.model import AccountBalances, LedgerAccount

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
    for name, lock, balance in (
        ("pending", draft.pending_lock, balances.pending),
        ("posted", draft.posted_lock, balances.posted),
        ("available", draft.available_lock, balances.available),
    ):
        if lock is None:
            continue
        amount = balance(after, account.normal_balance).amount
        broken = broken_condition(lock, amount)
        if broken is not None:
            raise BalanceLockBroken(
                f"the {name} balance of ledger account {account.id} would be {amount}, "
                f"not {broken}",
                parameter,
            )


def broken_condition(lock: BalanceLock, amount: int) -> str | None:
    """The first condition that does not hold for the amount, in words; None where all do."""
    for name, holds in _CONDITIONS:
        bound: int | None = getattr(lock, name)
        if bound is not None and not holds(amount, bound):
            return f"{name} {bound}"
    return None
