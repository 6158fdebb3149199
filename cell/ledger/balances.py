"""Balance arithmetic: from an account's four accumulators to its three balances (pure)."""

from typing import Literal, NamedTuple

from cell.ledger.model import AccountBalances, Direction

BalanceKind = Literal["pending", "posted", "available"]


class Balance(NamedTuple):
    """One balance: `amount` is signed, positive on the account's normal side."""

    amount: int
    credits: int
    debits: int


def posted(of: AccountBalances, normal: Direction) -> Balance:
    """What is final."""
    return _balance(of.posted_credits, of.posted_debits, normal)


def pending(of: AccountBalances, normal: Direction) -> Balance:
    """What will be final once everything pending is posted."""
    return _balance(
        of.posted_credits + of.pending_credits, of.posted_debits + of.pending_debits, normal
    )


def available(of: AccountBalances, normal: Direction) -> Balance:
    """What may still be used: a pending outflow counts at once, a pending inflow not yet."""
    if normal is Direction.CREDIT:
        return _balance(of.posted_credits, of.posted_debits + of.pending_debits, normal)
    return _balance(of.posted_credits + of.pending_credits, of.posted_debits, normal)


def _balance(credits: int, debits: int, normal: Direction) -> Balance:
    amount = credits - debits if normal is Direction.CREDIT else debits - credits
    return Balance(amount, credits, debits)
