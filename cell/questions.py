"""Questions of exclusive commands, answered by the database: one SELECT each.

A question and its place in the rules are in the module of the rules that ask it; here is how it is
answered. Nothing is in flight while it is, so that the answer is of the state the rule sees.
"""

from functools import singledispatch
from typing import Any, Final, LiteralString

from cell.ledger.balances import Accumulators
from cell.ledger.categories import LevelsBelow
from cell.ledger.category_locks import LOCKED_ACCOUNTS_MAX, CategoryNow, LockedCategory
from cell.ledger.model import SettlementEntry, TenantId
from cell.ledger.settlement_gathering import (
    Examination,
    HeldEntries,
    OpenEntries,
    UnexaminedEntries,
)
from cell.ledger.statements import BalancesBefore
from cell.rows import TABLE_OF, Reader, row_from


@singledispatch
async def ask(question: object, connection: Reader, tenant_id: TenantId) -> Any:
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
    question: OpenEntries, connection: Reader, tenant_id: TenantId
) -> tuple[SettlementEntry, ...]:
    parameters = (tenant_id, question.ledger_account_id, question.entries_max)
    return await _read(OPEN, parameters, connection)


HELD: Final = f"""
SELECT {_ROW} FROM settlement_entries
WHERE tenant_id = %s AND settlement_id = %s AND NOT is_own ORDER BY id LIMIT %s
"""


@ask.register
async def _held_entries(
    question: HeldEntries, connection: Reader, tenant_id: TenantId
) -> tuple[SettlementEntry, ...]:
    parameters = (tenant_id, question.settlement_id, question.entries_max)
    return await _read(HELD, parameters, connection)


async def _read(
    statement: LiteralString, parameters: tuple[object, ...], connection: Reader
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
    question: UnexaminedEntries, connection: Reader, tenant_id: TenantId
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


_LEVELS_BELOW: Final = """
WITH RECURSIVE below (id, level) AS (
    SELECT %(category)s::uuid, 0
    UNION
    SELECT c.id, b.level + 1 FROM below b
    JOIN category_nestings n ON n.tenant_id = %(tenant)s AND n.category_id = b.id
        AND n.discarded_at_us IS NULL
    JOIN ledger_account_categories c ON c.tenant_id = %(tenant)s AND c.id = n.sub_category_id
        AND c.discarded_at_us IS NULL
)
SELECT max(level) FROM below
"""


@ask.register
async def _levels_below(question: LevelsBelow, connection: Reader, tenant_id: TenantId) -> int:
    parameters = {"tenant": tenant_id, "category": question.category_id}
    row = await (await connection.execute(_LEVELS_BELOW, parameters)).fetchone()
    assert row is not None
    return int(row[0])


_IS_LARGE: Final = """
SELECT count(*) > %(limit)s FROM (
    SELECT FROM category_members m WHERE m.tenant_id = %(tenant)s
        AND m.category_id = ANY (category_graph(%(tenant)s, %(category)s))
        AND m.discarded_at_us IS NULL LIMIT %(limit)s + 1) members
"""
_CATEGORY_NOW: Final = """
WITH asked (id) AS (
    SELECT unnest(%(accounts)s::uuid[])
    UNION
    SELECT e.ledger_account_id FROM ledger_entries e WHERE e.tenant_id = %(tenant)s
        AND e.ledger_transaction_id = %(transaction)s::uuid AND e.discarded_at_us IS NULL
)
SELECT s.pending_debits, s.pending_credits, s.posted_debits, s.posted_credits, ARRAY(
    SELECT a.id FROM asked a JOIN category_members m ON m.ledger_account_id = a.id
    WHERE m.tenant_id = %(tenant)s AND m.discarded_at_us IS NULL
        AND m.category_id = ANY (category_graph(%(tenant)s, %(category)s)))
FROM category_sums(%(tenant)s, %(category)s) s
"""


@ask.register
async def _locked_category(
    question: LockedCategory, connection: Reader, tenant_id: TenantId
) -> CategoryNow | None:
    parameters = {
        "tenant": tenant_id,
        "category": question.category_id,
        "accounts": list(question.account_ids),
        "transaction": question.transaction_id,
        "limit": LOCKED_ACCOUNTS_MAX,
    }
    large = await (await connection.execute(_IS_LARGE, parameters)).fetchone()
    if large is None or large[0]:
        return None
    row = await (await connection.execute(_CATEGORY_NOW, parameters)).fetchone()
    assert row is not None
    return CategoryNow(Accumulators(*row[:4]), frozenset(row[4]))


_BALANCES_BEFORE: Final = """
SELECT pending_debits, pending_credits, posted_debits, posted_credits
FROM balances_before(%s::uuid, %s::uuid, %s::bigint)
"""


@ask.register
async def _balances_before(
    question: BalancesBefore, connection: Reader, tenant_id: TenantId
) -> Accumulators:
    parameters = (tenant_id, question.ledger_account_id, question.bound_us)
    cursor = await connection.execute(_BALANCES_BEFORE, parameters, prepare=True)
    (row,) = await cursor.fetchall()
    return Accumulators(*row)
