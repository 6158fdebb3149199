"""Balance arithmetic: from four sums to three balances (pure)."""

from typing import Literal, NamedTuple, Protocol

from cell.ledger.model import Direction

BalanceKind = Literal["pending", "posted", "available"]


class Sums(Protocol):
    """Sums of debits and credits by status: those of an account, or of many."""

    @property
    def pending_debits(self) -> int: ...
    @property
    def pending_credits(self) -> int: ...
    @property
    def posted_debits(self) -> int: ...
    @property
    def posted_credits(self) -> int: ...


class Accumulators(NamedTuple):
    """Sums that belong to no single account."""

    pending_debits: int
    pending_credits: int
    posted_debits: int
    posted_credits: int


class Balance(NamedTuple):
    """One balance: `amount` is signed, positive on the account's normal side."""

    amount: int
    credits: int
    debits: int


def posted(of: Sums, normal: Direction) -> Balance:
    """What is final."""
    return _balance(of.posted_credits, of.posted_debits, normal)


def pending(of: Sums, normal: Direction) -> Balance:
    """What will be final once everything pending is posted."""
    return _balance(
        of.posted_credits + of.pending_credits, of.posted_debits + of.pending_debits, normal
    )


def available(of: Sums, normal: Direction) -> Balance:
    """What may still be used: a pending outflow counts at once, a pending inflow not yet."""
    if normal is Direction.CREDIT:
        return _balance(of.posted_credits, of.posted_debits + of.pending_debits, normal)
    return _balance(of.posted_credits + of.pending_credits, of.posted_debits, normal)


def _balance(credits: int, debits: int, normal: Direction) -> Balance:
    amount = credits - debits if normal is Direction.CREDIT else debits - credits
    return Balance(amount, credits, debits)
