"""Questions of exclusive commands, answered by the database: one SELECT each.

A question and its place in the rules are in the module of the rules that ask it; here is how it is
answered. Nothing is in flight while it is, so that the answer is of the state the rule sees.
"""

from functools import singledispatch
from typing import Any, Final

import psycopg

from cell.ledger.model import TenantId
from cell.ledger.statements import Accumulators, BalancesBefore

Connection = psycopg.AsyncConnection[Any]


@singledispatch
async def ask(question: object, connection: Connection, tenant_id: TenantId) -> Any:
    """The answer, of the type that the question's own module says."""
    raise AssertionError(f"no answer to {type(question).__name__}")


_BALANCES_BEFORE: Final = """
SELECT pending_debits, pending_credits, posted_debits, posted_credits
FROM balances_before(%s::uuid, %s::uuid, %s::bigint)
"""


@ask.register
async def _balances_before(
    question: BalancesBefore, connection: Connection, tenant_id: TenantId
) -> Accumulators:
    parameters = (tenant_id, question.ledger_account_id, question.bound_us)
    cursor = await connection.execute(_BALANCES_BEFORE, parameters, prepare=True)
    (row,) = await cursor.fetchall()
    return Accumulators(*row)
