"""Questions of exclusive commands, answered by the database: one SELECT each.

A question and its place in the rules are in the module of the rules that ask it; here is how it is
answered. Nothing is in flight while it is, so that the answer is of the state the rule sees.
"""

from functools import singledispatch
from typing import Any

import psycopg

from cell.ledger.model import TenantId

Connection = psycopg.AsyncConnection[Any]


@singledispatch
async def ask(question: object, connection: Connection, tenant_id: TenantId) -> Any:
    """The answer, of the type that the question's own module says."""
    raise AssertionError(f"no answer to {type(question).__name__}")
