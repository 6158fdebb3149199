"""Ledger account statements: create and retrieve; they are never changed, listed or deleted.

A statement holds the balances before two times, as the account stood at its lock version at that
moment. Whatever is written later, backdated or not, changes none of it; its entries are those
listed with `ledger_account_statement_id`. An unknown account is a bad parameter (422).
"""

from typing import Final

import msgspec

from cell.answers import Answer, render
from cell.balance_views import LedgerBalances, show_balances
from cell.calls import Call, FirstAnswer, Route
from cell.errors import NotFound, Unprocessable
from cell.journal import Record
from cell.ledger.balances import Accumulators
from cell.ledger.commands import Command, CreateLedgerAccountStatement
from cell.ledger.model import Direction, LedgerAccountStatement
from cell.parameters import Kind, Parameter
from cell.row_json import row_as_json, row_from_json
from cell.timestamps import parse_timestamp, render_timestamp
from cell.wellformed import Description, Id, Metadata, parse_uuid, without_empty_values

LOWER_BOUND: Final = "effective_at_lower_bound"
UPPER_BOUND: Final = "effective_at_upper_bound"


class CreateBody(msgspec.Struct, frozen=True):
    ledger_account_id: Id
    effective_at_lower_bound: str
    effective_at_upper_bound: str
    description: Description | None = None
    metadata: Metadata = {}


class LedgerAccountStatementView(msgspec.Struct, frozen=True, gc=False):
    id: str
    object: str
    live_mode: bool
    created_at: str
    updated_at: str
    ledger_id: str
    description: str | None
    metadata: dict[str, str]
    ledger_account_id: str
    ledger_account_lock_version: int
    ledger_account_normal_balance: Direction
    effective_at_lower_bound: str
    effective_at_upper_bound: str
    starting_balance: LedgerBalances
    ending_balance: LedgerBalances


def show(statement: LedgerAccountStatement) -> LedgerAccountStatementView:
    starting = Accumulators(
        statement.starting_pending_debits,
        statement.starting_pending_credits,
        statement.starting_posted_debits,
        statement.starting_posted_credits,
    )
    ending = Accumulators(
        statement.ending_pending_debits,
        statement.ending_pending_credits,
        statement.ending_posted_debits,
        statement.ending_posted_credits,
    )
    return LedgerAccountStatementView(
        id=statement.id,
        object="ledger_account_statement",
        live_mode=True,
        created_at=render_timestamp(statement.created_at_us),
        updated_at=render_timestamp(statement.updated_at_us),
        ledger_id=statement.ledger_id,
        description=statement.description,
        metadata=statement.metadata,
        ledger_account_id=statement.ledger_account_id,
        ledger_account_lock_version=statement.lock_version,
        ledger_account_normal_balance=statement.normal_balance,
        effective_at_lower_bound=render_timestamp(statement.lower_bound_us),
        effective_at_upper_bound=render_timestamp(statement.upper_bound_us),
        starting_balance=show_balances(statement, starting),
        ending_balance=show_balances(statement, ending),
    )


async def create(call: Call) -> Answer:
    body = await call.body(CreateBody)
    command = CreateLedgerAccountStatement(
        ledger_account_id=parse_uuid(body.ledger_account_id, "ledger_account_id"),
        lower_bound_us=parse_timestamp(body.effective_at_lower_bound, LOWER_BOUND),
        upper_bound_us=parse_timestamp(body.effective_at_upper_bound, UPPER_BOUND),
        description=body.description,
        metadata=without_empty_values(body.metadata),
    )
    if command.lower_bound_us > command.upper_bound_us:
        raise Unprocessable(f"{LOWER_BOUND} is after {UPPER_BOUND}", LOWER_BOUND)
    return await call.create(command)


def answer_created(record: Record) -> bytes:
    (statement,) = record.inserted
    assert isinstance(statement, LedgerAccountStatement)
    return render(show(statement))


_RETRIEVE: Final = f"""
SELECT {row_as_json("s", LedgerAccountStatement)} FROM ledger_account_statements s
WHERE s.tenant_id = %s AND s.id = %s
"""


async def retrieve(call: Call) -> Answer:
    call.query()
    id = call.require_id("ledger account statement")
    found = await find(call, id)
    if found is None:
        raise NotFound(f"no ledger account statement {id}")
    return Answer(200, render(show(found)))


OF_STATEMENT: Final = Parameter("ledger_account_statement_id", Kind.ID)
"""For listings of what belongs to a statement."""


async def find(call: Call, id: str) -> LedgerAccountStatement | None:
    """The statement; for listings of what belongs to it, too."""
    rows = await call.fetch(_RETRIEVE, (call.tenant_id, id))
    return row_from_json(LedgerAccountStatement, rows[0][0]) if rows else None


ROUTES: Final = (
    Route(
        "POST",
        "/api/ledger_account_statements",
        create,
        "Create a ledger account statement",
        LedgerAccountStatementView,
        CreateBody,
    ),
    Route(
        "GET",
        "/api/ledger_account_statements/{id}",
        retrieve,
        "Retrieve a ledger account statement",
        LedgerAccountStatementView,
    ),
)
FIRST_ANSWERS: Final[dict[type[Command], FirstAnswer]] = {
    CreateLedgerAccountStatement: answer_created
}
