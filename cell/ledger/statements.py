"""The rules of ledger account statements (pure): creation; a statement never changes.

What the balances before a time are, only the entries as a whole can say: that is a question.
"""

from cell.errors import Unprocessable
from cell.ledger.balances import Accumulators
from cell.ledger.commands import CreateLedgerAccountStatement
from cell.ledger.model import Effects, LedgerAccount, LedgerAccountStatement, Stamp, TenantId
from cell.ledger.needs import Needs, Question, note_needs
from cell.ledger.rules import State, apply


class BalancesBefore(Question, frozen=True, tag="balances_before"):
    """The sums over an account's live entries dated before a time; answered by `Accumulators`."""

    ledger_account_id: str
    bound_us: int


@note_needs.register
def _needs_of_new(command: CreateLedgerAccountStatement, tenant_id: TenantId, needs: Needs) -> None:
    needs.accounts.add((tenant_id, command.ledger_account_id))
    for bound_us in (command.lower_bound_us, command.upper_bound_us):
        needs.questions.add((tenant_id, BalancesBefore(command.ledger_account_id, bound_us)))


@apply.register
def _create(command: CreateLedgerAccountStatement, state: State, stamp: Stamp) -> Effects:
    account = _known_account(state, command.ledger_account_id)
    starting: Accumulators = state.answer(BalancesBefore(account.id, command.lower_bound_us))
    ending: Accumulators = state.answer(BalancesBefore(account.id, command.upper_bound_us))
    statement = LedgerAccountStatement(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        ledger_id=account.ledger_id,
        ledger_account_id=account.id,
        description=command.description,
        metadata=command.metadata,
        normal_balance=account.normal_balance,
        currency=account.currency,
        currency_exponent=account.currency_exponent,
        lower_bound_us=command.lower_bound_us,
        upper_bound_us=command.upper_bound_us,
        lock_version=state.balances(account.id).lock_version,
        starting_pending_debits=starting.pending_debits,
        starting_pending_credits=starting.pending_credits,
        starting_posted_debits=starting.posted_debits,
        starting_posted_credits=starting.posted_credits,
        ending_pending_debits=ending.pending_debits,
        ending_pending_credits=ending.pending_credits,
        ending_posted_debits=ending.posted_debits,
        ending_posted_credits=ending.posted_credits,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )
    return Effects(inserted=(statement,))


def _known_account(state: State, id: str) -> LedgerAccount:
    """The account; an unknown one, or one that is discarded with its ledger, is a bad parameter."""
    account = state.account(id)
    ledger = state.ledger(account.ledger_id) if account is not None else None
    if (
        account is None
        or account.discarded_at_us is not None
        or ledger is None
        or ledger.discarded_at_us is not None
    ):
        raise Unprocessable(f"no ledger account {id}", "ledger_account_id")
    return account
