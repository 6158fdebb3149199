"""The rules of ledger account settlements (pure): creation, the state machine, its transaction.

Creating one, in order of precedence:
1. the settled and the contra account known, not discarded, of one ledger and currency, two accounts
2. a draft holds nothing yet; else entries are gathered, as many as one command may look at
3. when all are: there is something to settle, in a direction that is allowed
4. its transaction can be written; it offsets what was gathered on the settled account

What cannot be gathered in one command goes on in others, `processing`; if rung 3 or 4 fails only
then, nobody is there to be told: the settlement archives itself.

    drafting ──► posted          processing ──► pending ──► posted
       └──► archived                  └──► archiving ◄──┘
                                               └──► archived
"""

from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import ApiError, NotFound, Unprocessable
from cell.ledger.commands import (
    ContinueLedgerAccountSettlement,
    CreateLedgerAccountSettlement,
    CreateLedgerTransaction,
    EntryDraft,
    UpdateLedgerAccountSettlement,
    UpdateLedgerTransaction,
)
from cell.ledger.model import (
    Direction,
    Effects,
    LedgerAccount,
    LedgerAccountSettlement,
    LedgerEntry,
    Row,
    SettledAccount,
    SettlementEntry,
    SettlementStatus,
    Stamp,
    Status,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, note_needs
from cell.ledger.rules import State, apply, merged_metadata
from cell.ledger.settlement_gathering import (
    HeldEntries,
    Questions,
    Step,
    first_questions,
    gather,
    hold,
    next_questions,
    open_row_of,
    release,
)
from cell.ledger.settlement_transactions import settlement_transaction_id
from cell.ledger.transactions import update_transaction

_AMOUNT_END: Final = 10**36


@note_needs.register
def _needs_of_new(
    command: CreateLedgerAccountSettlement, tenant_id: TenantId, needs: Needs
) -> None:
    needs.accounts.add((tenant_id, command.settled_ledger_account_id))
    needs.accounts.add((tenant_id, command.contra_ledger_account_id))
    if command.is_exclusive():
        needs.row(SettledAccount, tenant_id, command.settled_ledger_account_id)


def _further_needs_of_new(
    command: CreateLedgerAccountSettlement, state: State, needs: Needs
) -> None:
    # Of an account that is not there, nothing is asked.
    if command.is_exclusive() and state.account(command.settled_ledger_account_id) is not None:
        for question in _first_questions(command, state):
            needs.questions.add((state.tenant_id, question))


def _first_questions(command: CreateLedgerAccountSettlement, state: State) -> Questions:
    return first_questions(command.settled_ledger_account_id, state, command.entries_per_step)


@note_needs.register(UpdateLedgerAccountSettlement | ContinueLedgerAccountSettlement)
def _needs_of_present(
    command: UpdateLedgerAccountSettlement | ContinueLedgerAccountSettlement,
    tenant_id: TenantId,
    needs: Needs,
) -> None:
    needs.row(LedgerAccountSettlement, tenant_id, command.id)
    if (
        isinstance(command, ContinueLedgerAccountSettlement)
        or command.status is SettlementStatus.ARCHIVED
    ):
        held = HeldEntries(command.id, command.entries_per_step)
        needs.questions.add((tenant_id, held))


def _further_needs_of_present(
    command: UpdateLedgerAccountSettlement | ContinueLedgerAccountSettlement,
    state: State,
    needs: Needs,
) -> None:
    settlement = state.row(LedgerAccountSettlement, command.id)
    if settlement is None:
        return
    tenant_id = state.tenant_id
    needs.accounts.add((tenant_id, settlement.settled_ledger_account_id))
    needs.accounts.add((tenant_id, settlement.contra_ledger_account_id))
    if settlement.ledger_transaction_id is not None:
        needs.transactions.add((tenant_id, settlement.ledger_transaction_id))
    if isinstance(command, ContinueLedgerAccountSettlement) and _is_processing(settlement):
        needs.row(SettledAccount, tenant_id, settlement.settled_ledger_account_id)
        for question in next_questions(settlement, command.entries_per_step):
            needs.questions.add((tenant_id, question))


def _is_processing(settlement: LedgerAccountSettlement) -> bool:
    return settlement.status is SettlementStatus.PROCESSING


FURTHER_NEEDS[CreateLedgerAccountSettlement] = _further_needs_of_new
FURTHER_NEEDS[UpdateLedgerAccountSettlement] = _further_needs_of_present
FURTHER_NEEDS[ContinueLedgerAccountSettlement] = _further_needs_of_present


@apply.register
def _create(command: CreateLedgerAccountSettlement, state: State, stamp: Stamp) -> Effects:
    settled = _require_account(
        command.settled_ledger_account_id, "settled_ledger_account_id", state
    )
    contra = _require_account(command.contra_ledger_account_id, "contra_ledger_account_id", state)
    _require_pair(settled, contra)
    new = _new(command, settled, state, stamp)
    if command.status is SettlementStatus.DRAFTING:
        return Effects(inserted=(new,))
    step = gather(new, _first_questions(command, state), state, stamp)
    if not step.is_last:
        return Effects(inserted=(step.settlement, *step.inserted), updated=step.updated)
    concluded, written = _conclude(step.settlement, state, stamp)
    return Effects(
        inserted=(concluded, *written.inserted, *step.inserted),
        updated=(*written.updated, *step.updated),
    )


def _require_account(id: str, parameter: str, state: State) -> LedgerAccount:
    account = state.account(id)
    if account is None or account.discarded_at_us is not None:
        raise Unprocessable(f"no ledger account {id}", parameter)
    ledger = state.ledger(account.ledger_id)
    if ledger is None or ledger.discarded_at_us is not None:
        raise Unprocessable(f"no ledger account {id}", parameter)
    return account


def _require_pair(settled: LedgerAccount, contra: LedgerAccount) -> None:
    parameter = "contra_ledger_account_id"
    if contra.id == settled.id:
        raise Unprocessable("an account cannot be settled against itself", parameter)
    if contra.ledger_id != settled.ledger_id:
        raise Unprocessable("the settled and the contra account belong to one ledger", parameter)
    units = {(account.currency, account.currency_exponent) for account in (settled, contra)}
    if len(units) > 1:
        raise Unprocessable("the settled and the contra account have one currency", parameter)


def _new(
    command: CreateLedgerAccountSettlement, settled: LedgerAccount, state: State, stamp: Stamp
) -> LedgerAccountSettlement:
    """The settlement before anything is gathered."""
    is_draft = command.status is SettlementStatus.DRAFTING
    bound_us = command.effective_at_upper_bound_us
    if bound_us is None and not is_draft:
        bound_us = stamp.at_us
    return LedgerAccountSettlement(
        tenant_id=settled.tenant_id,
        id=stamp.id_base,
        ledger_id=settled.ledger_id,
        status=SettlementStatus.DRAFTING if is_draft else SettlementStatus.PROCESSING,
        description=command.description,
        settled_ledger_account_id=settled.id,
        contra_ledger_account_id=command.contra_ledger_account_id,
        effective_at_upper_bound_us=bound_us,
        allows_either_direction=command.allows_either_direction,
        skips_transaction=command.skips_transaction,
        posts_when_gathered=command.status is not SettlementStatus.PENDING,
        ledger_transaction_id=None,
        amount=None,
        settlement_entry_direction=None,
        currency=settled.currency,
        currency_exponent=settled.currency_exponent,
        metadata=command.metadata,
        gathered_debits=0,
        gathered_credits=0,
        last_version=None if is_draft else state.balances(settled.id).lock_version,
        examined_version=None,
        examined_id=None,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )


def _conclude(
    settlement: LedgerAccountSettlement, state: State, stamp: Stamp
) -> tuple[LedgerAccountSettlement, Effects]:
    """Rungs 3 and 4: everything is gathered; the settlement, and the rows of its transaction."""
    account = state.account(settlement.settled_ledger_account_id)
    assert account is not None
    net = settlement.gathered_credits - settlement.gathered_debits
    if account.normal_balance is Direction.DEBIT:
        net = -net
    has_nothing = not settlement.gathered_credits and not settlement.gathered_debits
    if has_nothing or (net <= 0 and not settlement.allows_either_direction):
        raise Unprocessable(
            f"nothing to settle: the unsettled entries come to {net}", "settled_ledger_account_id"
        )
    normal = account.normal_balance
    status = SettlementStatus.POSTED if settlement.posts_when_gathered else SettlementStatus.PENDING
    concluded = replace(
        settlement,
        status=status,
        amount=abs(net),
        settlement_entry_direction=normal.opposite if net >= 0 else normal,
        updated_at_us=stamp.at_us,
        seq=stamp.seq,
    )
    if settlement.skips_transaction:
        return concluded, Effects()
    return _write_transaction(concluded, state, stamp)


def _write_transaction(
    settlement: LedgerAccountSettlement, state: State, stamp: Stamp
) -> tuple[LedgerAccountSettlement, Effects]:
    amount, direction = settlement.amount, settlement.settlement_entry_direction
    assert amount is not None
    assert direction is not None
    if amount >= _AMOUNT_END:
        raise Unprocessable(
            f"the amount {amount} is beyond what one ledger entry holds",
            "settled_ledger_account_id",
        )
    drafts = (
        EntryDraft(
            ledger_account_id=settlement.settled_ledger_account_id,
            direction=direction,
            amount=amount,
        ),
        EntryDraft(
            ledger_account_id=settlement.contra_ledger_account_id,
            direction=direction.opposite,
            amount=amount,
        ),
    )
    command = CreateLedgerTransaction(
        entries=drafts,
        status=Status(settlement.status.value),
        description=settlement.description,
    )
    id = settlement_transaction_id(stamp.id_base)
    written = apply(command, state, Stamp(stamp.seq, stamp.at_us, id))
    own = _own_entry(settlement, written.inserted, stamp)
    return (
        replace(settlement, ledger_transaction_id=id),
        Effects(inserted=(*written.inserted, own), updated=written.updated),
    )


def _own_entry(
    settlement: LedgerAccountSettlement, written: tuple[Row, ...], stamp: Stamp
) -> SettlementEntry:
    """The row that lists the settlement's own entry and keeps it from ever being gathered."""
    (entry,) = (
        row
        for row in written
        if isinstance(row, LedgerEntry)
        and row.ledger_account_id == settlement.settled_ledger_account_id
    )
    return replace(hold(open_row_of(entry), settlement, stamp), is_own=True)


@apply.register
def _update(command: UpdateLedgerAccountSettlement, state: State, stamp: Stamp) -> Effects:
    present = require_settlement(command.id, state)
    changed = _with_changes(present, command)
    status = command.status
    is_there = status is present.status or (
        status is SettlementStatus.ARCHIVED and present.status is SettlementStatus.ARCHIVING
    )
    if status is UNSET or is_there:
        if changed == present:
            return Effects(updated=(present,))
        # Events are worked out of the journal, which is to tell of each status once.
        left = None if status is UNSET else replace(command, status=UNSET)
        return Effects(updated=(written_at(changed, stamp),), recorded_as=left)
    if status is SettlementStatus.POSTED:
        return _post(changed, state, stamp)
    return _archive(changed, command, state, stamp)


def require_settlement(id: str, state: State) -> LedgerAccountSettlement:
    settlement = state.row(LedgerAccountSettlement, id)
    if settlement is None:
        raise NotFound(f"no ledger account settlement {id}")
    return settlement


def written_at(settlement: LedgerAccountSettlement, stamp: Stamp) -> LedgerAccountSettlement:
    return replace(settlement, updated_at_us=stamp.at_us, seq=stamp.seq)


def _with_changes(
    present: LedgerAccountSettlement, command: UpdateLedgerAccountSettlement
) -> LedgerAccountSettlement:
    skips = present.skips_transaction
    if command.skips_transaction is not UNSET and command.skips_transaction is not skips:
        if present.status is not SettlementStatus.DRAFTING:
            raise Unprocessable(
                f"a ledger account settlement that is {present.status} has decided that already",
                "skip_settlement_ledger_transaction",
            )
        skips = command.skips_transaction
    return replace(
        present,
        description=present.description if command.description is UNSET else command.description,
        skips_transaction=skips,
        metadata=merged_metadata(present.metadata, command.metadata),
    )


def _post(settlement: LedgerAccountSettlement, state: State, stamp: Stamp) -> Effects:
    if settlement.status is SettlementStatus.DRAFTING:
        concluded, written = _conclude(settlement, state, stamp)
        return Effects(inserted=written.inserted, updated=(concluded, *written.updated))
    _require_status(settlement, SettlementStatus.POSTED, SettlementStatus.PENDING)
    posted = written_at(replace(settlement, status=SettlementStatus.POSTED), stamp)
    if settlement.ledger_transaction_id is None:
        return Effects(updated=(posted,))
    change = UpdateLedgerTransaction(id=settlement.ledger_transaction_id, status=Status.POSTED)
    written = update_transaction(change, state, stamp)
    own = _own_entry(posted, written.inserted, stamp)
    return Effects(inserted=(*written.inserted, own), updated=(posted, *written.updated))


def _require_status(
    settlement: LedgerAccountSettlement, wanted: SettlementStatus, *allowed: SettlementStatus
) -> None:
    if settlement.status not in allowed:
        raise Unprocessable(
            f"a ledger account settlement that is {settlement.status} cannot become {wanted}",
            "status",
        )


def _archive(
    settlement: LedgerAccountSettlement,
    command: UpdateLedgerAccountSettlement,
    state: State,
    stamp: Stamp,
) -> Effects:
    allowed = (SettlementStatus.DRAFTING, SettlementStatus.PROCESSING, SettlementStatus.PENDING)
    _require_status(settlement, SettlementStatus.ARCHIVED, *allowed)
    written = Effects()
    if settlement.ledger_transaction_id is not None:
        change = UpdateLedgerTransaction(
            id=settlement.ledger_transaction_id, status=Status.ARCHIVED
        )
        written = update_transaction(change, state, stamp)
    step = _release(settlement, command.entries_per_step, state, stamp)
    return Effects(
        inserted=written.inserted, updated=(step.settlement, *written.updated, *step.updated)
    )


def _release(
    settlement: LedgerAccountSettlement, entries_max: int, state: State, stamp: Stamp
) -> Step:
    step = release(settlement, HeldEntries(settlement.id, entries_max), state, stamp)
    status = SettlementStatus.ARCHIVED if step.is_last else SettlementStatus.ARCHIVING
    archived = replace(step.settlement, status=status, examined_version=None, examined_id=None)
    return Step(settlement=written_at(archived, stamp), updated=step.updated, is_last=step.is_last)


@apply.register
def _continue(command: ContinueLedgerAccountSettlement, state: State, stamp: Stamp) -> Effects:
    settlement = require_settlement(command.id, state)
    if settlement.status is SettlementStatus.ARCHIVING:
        step = _release(settlement, command.entries_per_step, state, stamp)
        return Effects(updated=(step.settlement, *step.updated))
    if not _is_processing(settlement):
        return Effects(updated=(settlement,))
    step = gather(settlement, next_questions(settlement, command.entries_per_step), state, stamp)
    if not step.is_last:
        return Effects(
            inserted=step.inserted, updated=(written_at(step.settlement, stamp), *step.updated)
        )
    try:
        concluded, written = _conclude(step.settlement, state, stamp)
    except ApiError:
        given_up = replace(step.settlement, status=SettlementStatus.ARCHIVING)
        concluded, written = written_at(given_up, stamp), Effects()
    return Effects(
        inserted=(*written.inserted, *step.inserted),
        updated=(concluded, *written.updated, *step.updated),
    )
