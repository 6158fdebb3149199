"""What reads of categories cost; run by hand: `python -m benchmarks.category_reads [ACCOUNTS]`.

One tenant with a chain of five categories, all of whose accounts (a million unless told otherwise)
are in the lowest and every tenth also in the highest; and 10,000 categories of twenty accounts.
Rows are made by SQL: what is measured is the reader's statements, in milliseconds each, as the
median of a few after a first one. Prints a table.
"""

import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, LiteralString

import psycopg

from benchmarks.database import running_postgres
from benchmarks.engine_database import TEMPLATE, make_template
from cell.schema import ROLES

ACCOUNTS: Final = 1_000_000
REPEATS: Final = 5

_FILL: Final[Mapping[str, LiteralString]] = {
    "ids by number": """
        CREATE FUNCTION id_of(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
        AS $$ SELECT ('0194f7f3-0000-7000-8000-' || kind || lpad(to_hex(number), 11, '0'))::uuid $$
    """,
    "accounts": """
        INSERT INTO ledger_accounts
        SELECT %(tenant)s, id_of('a', n), %(ledger)s, 'Account ' || n, NULL, 'credit', 'USD', 2,
            NULL, NULL, NULL, '{}', n, n, NULL, 1
        FROM generate_series(1, %(accounts)s) n""",
    "balances": """
        INSERT INTO ledger_account_balances
        SELECT %(tenant)s, id_of('a', n), n %% 7, n %% 5, n, 2 * n, n %% 100, 1
        FROM generate_series(1, %(accounts)s) n""",
    "categories": """
        INSERT INTO ledger_account_categories
        SELECT %(tenant)s, id_of('c', n), %(ledger)s, 'Category ' || n, NULL, 'credit', 'USD', 2,
            NULL, '{}', n, n, NULL, 1
        FROM generate_series(0, 10004) n""",
    "nestings": """
        INSERT INTO category_nestings
        SELECT %(tenant)s, id_of('e', n), id_of('c', n), id_of('c', n + 1), n, NULL, 1
        FROM generate_series(0, 3) n""",
    "members of the lowest": """
        INSERT INTO category_members
        SELECT %(tenant)s, id_of('1', n), id_of('c', 4), id_of('a', n), n, NULL, 1
        FROM generate_series(1, %(accounts)s) n""",
    "members of the highest": """
        INSERT INTO category_members
        SELECT %(tenant)s, id_of('2', n), id_of('c', 0), id_of('a', n), n, NULL, 1
        FROM generate_series(1, %(accounts)s, 10) n""",
    "members of small ones": """
        INSERT INTO category_members
        SELECT %(tenant)s, id_of('3', n), id_of('c', 5 + n / 20),
            id_of('a', 1 + (n * 7919) %% %(accounts)s), n, NULL, 1
        FROM generate_series(0, 199999) n""",
}
_PAGE: Final = """
SELECT a.id FROM ledger_accounts a WHERE a.tenant_id = %(tenant)s AND EXISTS (
    SELECT FROM category_members m WHERE m.ledger_account_id = a.id AND m.tenant_id = %(tenant)s
        AND m.category_id = ANY(category_graph(%(tenant)s, id_of('c', {number})))
        AND m.discarded_at_us IS NULL)
ORDER BY a.id DESC LIMIT 26
"""
_SUMS: Final = "SELECT * FROM category_sums(%(tenant)s, id_of('c', {number}))"
_READS: Final[Mapping[str, str]] = {
    "sums, one category of all accounts": _SUMS.format(number=4),
    "sums, five nested, two routes": _SUMS.format(number=0),
    "sums, twenty accounts": _SUMS.format(number=77),
    "a page of the accounts of the five": _PAGE.format(number=0),
    "a page of the accounts of the twenty": _PAGE.format(number=77),
    "a page of 25 small categories with their sums": """
        SELECT s.* FROM (SELECT * FROM ledger_account_categories c
            WHERE c.tenant_id = %(tenant)s ORDER BY c.id DESC LIMIT 26) c
        CROSS JOIN LATERAL category_sums(c.tenant_id, c.id) s""",
    "the categories that hold an account": """
        SELECT categories_holding(%(tenant)s, id_of('a', 1001))""",
}


def main(accounts: int) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        running_postgres("categories", Path(directory), ROLES, slow_flush=False) as postgres,
    ):
        databases = make_template(postgres)
        given = {
            "tenant": databases.tenant_id,
            "ledger": str(uuid.uuid4()),
            "accounts": accounts,
        }
        with psycopg.connect(postgres.superuser_dsn(TEMPLATE), autocommit=True) as connection:
            for what, statement in _FILL.items():
                print(f"{what} …", file=sys.stderr)
                fill = psycopg.ClientCursor(connection)
                fill.execute(statement, None if what == "ids by number" else given)
            connection.execute("VACUUM ANALYZE")
        print(f"| {accounts:,} accounts | ms |\n|---|---|")
        with psycopg.connect(postgres.dsn("cloister_reader", TEMPLATE)) as reader:
            cursor = psycopg.ClientCursor(reader)
            scope = "SELECT set_config('cloister.tenant_id', %s, false)"
            cursor.execute(scope, (databases.tenant_id,))
            for name, read in _READS.items():
                print(f"| {name} | {median_ms(cursor, read, given):,.1f} |")


def median_ms(cursor: psycopg.ClientCursor, read: str, given: Mapping[str, object]) -> float:
    took_ms = []
    for _ in range(REPEATS + 1):
        started_s = time.perf_counter()
        cursor.execute(read.encode(), given)
        cursor.fetchall()
        took_ms.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(took_ms[1:])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ACCOUNTS)
