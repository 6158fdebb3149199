"""Questions of exclusive commands, answered by the database: one SELECT each.

A question and its place in the rules are in the module of the rules that ask it; here is how it is
answered. Nothing is in flight while it is, so that the answer is of the state the rule sees.
"""

from functools import singledispatch
from typing import Any, Final

import psycopg

from cell.ledger.balances import Accumulators
from cell.ledger.categories import LevelsBelow
from cell.ledger.category_locks import LOCKED_ACCOUNTS_MAX, CategoryNow, LockedCategory
from cell.ledger.model import TenantId

Connection = psycopg.AsyncConnection[Any]


@singledispatch
async def ask(question: object, connection: Connection, tenant_id: TenantId) -> Any:
    """The answer, of the type that the question's own module says."""
    raise AssertionError(f"no answer to {type(question).__name__}")


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
async def _levels_below(question: LevelsBelow, connection: Connection, tenant_id: TenantId) -> int:
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
    question: LockedCategory, connection: Connection, tenant_id: TenantId
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
