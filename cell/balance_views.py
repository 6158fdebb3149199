"""Balances as the API shows them: three kinds, each with its operands and their decimal twins."""

import msgspec

from cell.as_of import AsOf
from cell.ledger import balances
from cell.ledger.balances import Accumulators, Balance, Sums
from cell.ledger.model import (
    AccountBalances,
    Direction,
    LedgerAccount,
    LedgerAccountCategory,
    LedgerAccountStatement,
    LedgerEntry,
)
from cell.timestamps import render_timestamp_or_null


class LedgerBalance(msgspec.Struct, frozen=True, gc=False):
    amount: int
    amount_string: str
    credits: int
    credits_string: str
    debits: int
    debits_string: str
    currency: str
    currency_exponent: int


class LedgerBalances(msgspec.Struct, frozen=True, gc=False):
    """Of an entry: the account's after its transaction; of a monitor: the account's as they are;
    of a category: the sums of its accounts; of a statement: those before either of its bounds.
    """

    pending_balance: LedgerBalance
    posted_balance: LedgerBalance
    available_balance: LedgerBalance


class LedgerAccountBalances(msgspec.Struct, frozen=True, gc=False):
    """Of an account: with the bounds of time they are restricted to."""

    pending_balance: LedgerBalance
    posted_balance: LedgerBalance
    available_balance: LedgerBalance
    effective_at_lower_bound: str | None = None
    effective_at_upper_bound: str | None = None


def show_account_balances(
    account: LedgerAccount, of: AccountBalances, as_of: AsOf | None = None
) -> LedgerAccountBalances:
    """`of` is restricted already to what `as_of` says; the caller's bounds are echoed."""
    three = _three(of, account.normal_balance, account.currency, account.currency_exponent)
    if as_of is None or not as_of.shows_bounds:
        return LedgerAccountBalances(*three)
    return LedgerAccountBalances(
        *three,
        effective_at_lower_bound=render_timestamp_or_null(as_of.from_us),
        effective_at_upper_bound=render_timestamp_or_null(as_of.before_us),
    )


def show_balances(
    whose: LedgerAccount | LedgerAccountCategory | LedgerAccountStatement, of: Sums
) -> LedgerBalances:
    return LedgerBalances(
        *_three(of, whose.normal_balance, whose.currency, whose.currency_exponent)
    )


def show_resulting_balances(entry: LedgerEntry) -> LedgerBalances:
    of = Accumulators(
        pending_debits=entry.resulting_pending_debits,
        pending_credits=entry.resulting_pending_credits,
        posted_debits=entry.resulting_posted_debits,
        posted_credits=entry.resulting_posted_credits,
    )
    return LedgerBalances(
        *_three(of, entry.normal_balance, entry.currency, entry.currency_exponent)
    )


def _three(
    of: Sums, normal: Direction, currency: str, exponent: int
) -> tuple[LedgerBalance, LedgerBalance, LedgerBalance]:
    return (
        _show(balances.pending(of, normal), currency, exponent),
        _show(balances.posted(of, normal), currency, exponent),
        _show(balances.available(of, normal), currency, exponent),
    )


def _show(balance: Balance, currency: str, exponent: int) -> LedgerBalance:
    amount, credits, debits = balance
    return LedgerBalance(
        amount, str(amount), credits, str(credits), debits, str(debits), currency, exponent
    )
