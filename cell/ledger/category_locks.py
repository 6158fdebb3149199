"""Balance locks on categories: conditions on their sums after a whole ledger transaction (pure).

What the accounts of a category add up to is asked of the database, and so is which of the accounts
that the transaction touches are in it; what the transaction changes is laid on top. A command with
such locks is exclusive: nothing else is decided between the question and the write.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import UNSET

from cell.errors import Unprocessable
from cell.ledger.balance_locks import require_locks
from cell.ledger.balances import Accumulators
from cell.ledger.category_graph import live_category
from cell.ledger.commands import (
    CategoryBalanceLock,
    CreateLedgerTransaction,
    UpdateLedgerTransaction,
)
from cell.ledger.model import AccountBalances, LedgerAccountCategory, TenantId
from cell.ledger.needs import Needs, Question
from cell.ledger.rules import State

LOCKED_ACCOUNTS_MAX: Final = 100_000
"""Accounts of a category that can be locked. While they are added up, the cell decides nothing
else: this many take a tenth of a second."""

_AT: Final = "ledger_account_category_balance_locks"

Locking = CreateLedgerTransaction | UpdateLedgerTransaction
Change = tuple[AccountBalances, AccountBalances]
"""An account's balances before and after the transaction."""


class LockedCategory(Question, frozen=True, tag="locked_category"):
    """What is the category's sum, and which accounts are in it? `CategoryNow`, or None where it
    holds more than LOCKED_ACCOUNTS_MAX."""

    category_id: str
    account_ids: tuple[str, ...]
    """Asked about these accounts,"""
    transaction_id: str | None
    """and those of the live entries of this transaction."""


class CategoryNow(NamedTuple):
    sums: Accumulators
    inside: frozenset[str]
    """Those of the accounts asked about that are in the category, directly or through others."""


def note_category_locks(command: Locking, tenant_id: TenantId, needs: Needs) -> None:
    for lock in command.category_locks:
        needs.row(LedgerAccountCategory, tenant_id, lock.category_id)
        needs.questions.add((tenant_id, _question(lock, command)))


def _question(lock: CategoryBalanceLock, command: Locking) -> LockedCategory:
    drafts = () if command.entries is UNSET else command.entries
    return LockedCategory(
        category_id=lock.category_id,
        account_ids=tuple(sorted({draft.ledger_account_id for draft in drafts})),
        transaction_id=command.id if isinstance(command, UpdateLedgerTransaction) else None,
    )


def require_category_locks(
    command: Locking, ledger_id: str, changes: Iterable[Change], state: State
) -> None:
    """Raise BalanceLockBroken unless every lock holds on its category's sums after the changes."""
    changed = tuple(changes)
    for lock in command.category_locks:
        category = live_category(state, lock.category_id, _AT)
        if category.ledger_id != ledger_id:
            raise Unprocessable(
                f"ledger account category {category.id} belongs to another ledger", _AT
            )
        now: CategoryNow | None = state.answer(_question(lock, command))
        if now is None:
            raise Unprocessable(
                f"ledger account category {category.id} holds more than {LOCKED_ACCOUNTS_MAX} "
                "accounts, too many for a balance lock",
                _AT,
            )
        inside = (each for each in changed if each[0].ledger_account_id in now.inside)
        after = _after(now.sums, inside)
        whose = f"ledger account category {category.id}"
        require_locks(lock, after, category.normal_balance, whose, _AT)


def _after(sums: Accumulators, changes: Iterable[Change]) -> Accumulators:
    for before, after in changes:
        sums = Accumulators(
            sums.pending_debits + after.pending_debits - before.pending_debits,
            sums.pending_credits + after.pending_credits - before.pending_credits,
            sums.posted_debits + after.posted_debits - before.posted_debits,
            sums.posted_credits + after.posted_credits - before.posted_credits,
        )
    return sums
