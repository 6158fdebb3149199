"""Questions of exclusive commands, answered by the database: one SELECT each.

A question and its place in the rules are in the module of the rules that ask it; here is how it is
answered. Nothing is in flight while it is, so that the answer is of the state the rule sees.
"""

from functools import singledispatch
from typing import Any, Final, LiteralString

import psycopg

from cell.ledger.model import SettlementEntry, TenantId
from cell.ledger.settlement_gathering import (
    Examination,
    HeldEntries,
    OpenEntries,
    UnexaminedEntries,
)
from cell.rows import TABLE_OF, row_from

Connection = psycopg.AsyncConnection[Any]


@singledispatch
async def ask(question: object, connection: Connection, tenant_id: TenantId) -> Any:
    """The answer, of the type that the question's own module says."""
    raise AssertionError(f"no answer to {type(question).__name__}")


_ROW: Final = ", ".join(TABLE_OF[SettlementEntry].columns)
OPEN: Final = f"""
SELECT {_ROW} FROM settlement_entries
WHERE tenant_id = %s AND ledger_account_id = %s AND settlement_id IS NULL
ORDER BY effective_at_us, id LIMIT %s
"""


@ask.register
async def _open_entries(
    question: OpenEntries, connection: Connection, tenant_id: TenantId
) -> tuple[SettlementEntry, ...]:
    parameters = (tenant_id, question.ledger_account_id, question.entries_max)
    return await _read(OPEN, parameters, connection)


HELD: Final = f"""
SELECT {_ROW} FROM settlement_entries
WHERE tenant_id = %s AND settlement_id = %s AND NOT is_own ORDER BY id LIMIT %s
"""


@ask.register
async def _held_entries(
    question: HeldEntries, connection: Connection, tenant_id: TenantId
) -> tuple[SettlementEntry, ...]:
    parameters = (tenant_id, question.settlement_id, question.entries_max)
    return await _read(HELD, parameters, connection)


async def _read(
    statement: LiteralString, parameters: tuple[object, ...], connection: Connection
) -> tuple[SettlementEntry, ...]:
    cursor = await connection.execute(statement, parameters, prepare=True)
    return tuple([row_from(SettlementEntry, row) for row in await cursor.fetchall()])


UNEXAMINED: Final = """
SELECT e.tenant_id, e.id, e.ledger_account_id, e.ledger_transaction_id, NULL AS settlement_id,
    e.direction, e.amount, e.effective_at_us, false AS is_own, 0 AS seq, e.lock_version,
    e.status = 'posted' AND e.discarded_at_us IS NULL AND NOT EXISTS (
        SELECT FROM settlement_entries m WHERE m.tenant_id = e.tenant_id AND m.id = e.id)
FROM (
    SELECT * FROM ledger_entries
    WHERE tenant_id = %s AND ledger_account_id = %s AND (lock_version, id) > (%s, %s)
        AND lock_version <= %s
    ORDER BY lock_version, id LIMIT %s) e
ORDER BY e.lock_version, e.id
"""


@ask.register
async def _unexamined_entries(
    question: UnexaminedEntries, connection: Connection, tenant_id: TenantId
) -> Examination:
    parameters = (
        tenant_id,
        question.ledger_account_id,
        *question.after,
        question.last_version,
        question.entries_max,
    )
    cursor = await connection.execute(UNEXAMINED, parameters, prepare=True)
    rows = await cursor.fetchall()
    has_more = len(rows) == question.entries_max
    return Examination(
        found=tuple([row_from(SettlementEntry, row[:-2]) for row in rows if row[-1]]),
        examined=(rows[-1][-2], rows[-1][1]) if has_more else None,
    )
