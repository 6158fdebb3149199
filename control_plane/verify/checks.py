"""The checks in SQL: entries against balances and themselves, tables against after-images.

Each statement returns only what disagrees; none of them takes a lock that a writer would wait for.
All of them read one snapshot, and every one is bounded by `limit`.
"""

import json
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from cell.tables import ROW_TABLES, Table
from control_plane.verify.journal_reading import KEYS_TABLE, image_table
from control_plane.verify.report import DIFFERENCES_PER_CHECK_MAX, Findings

LIMIT: Final = DIFFERENCES_PER_CHECK_MAX + 1

Connection = psycopg.Connection[Any]
_Row = dict[str, Any]

ACCUMULATORS: Final = ("pending_debits", "pending_credits", "posted_debits", "posted_credits")


def rows_of(
    connection: Connection, statement: LiteralString | sql.Composed, **values: Any
) -> list[_Row]:
    """What one check's statement returns: at most `limit` rows, by column."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, {"limit": LIMIT, **values}).fetchall()


_SUMS: Final[LiteralString] = """
    coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit'), 0) AS a,
    coalesce(sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit'), 0) AS b,
    coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit'), 0) AS c,
    coalesce(sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit'), 0) AS d
"""
"""The accumulators of a group of entries, in the order of ACCUMULATORS."""

_BALANCES: Final = f"""
WITH sums AS (
    SELECT ledger_account_id AS id, {_SUMS}
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND discarded_at_us IS NULL
    GROUP BY ledger_account_id
), balances AS (
    SELECT ledger_account_id AS id, pending_debits AS a, pending_credits AS b,
        posted_debits AS c, posted_credits AS d
    FROM ledger_account_balances WHERE tenant_id = %(tenant)s
), accounts AS (
    SELECT id FROM ledger_accounts WHERE tenant_id = %(tenant)s
)
SELECT coalesce(f.id, s.id, n.id) AS account,
    n.id IS NULL AS has_no_account, f.id IS NULL AS has_no_balances,
    ARRAY[coalesce(s.a, 0), coalesce(s.b, 0), coalesce(s.c, 0), coalesce(s.d, 0)] AS expected,
    ARRAY[f.a, f.b, f.c, f.d] AS found
FROM balances f FULL JOIN sums s ON s.id = f.id FULL JOIN accounts n ON n.id = coalesce(f.id, s.id)
WHERE n.id IS NULL OR f.id IS NULL OR (f.a, f.b, f.c, f.d) IS DISTINCT FROM
    (coalesce(s.a, 0), coalesce(s.b, 0), coalesce(s.c, 0), coalesce(s.d, 0))
ORDER BY 1 LIMIT %(limit)s
"""


def compare_balances(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every account's four accumulators are the sums of its live entries."""
    check = "balances_of_entries"
    for row in rows_of(connection, _BALANCES, tenant=tenant_id):
        account = str(row["account"])
        if row["has_no_account"]:
            message = "there are entries or balances of an account that is not there"
            findings.note(check, message, account=account)
            continue
        if row["has_no_balances"]:
            findings.note(check, "the account has no row of balances", account=account)
            continue
        for name, expected, found in zip(ACCUMULATORS, row["expected"], row["found"], strict=True):
            if expected != found:
                message = f"{name} of the account is not the sum of its entries"
                findings.note(check, message, expected, found, account)


_LOCK_VERSIONS: Final = """
WITH produced AS (
    SELECT ledger_account_id AS id, lock_version AS version
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND lock_version > 0
    UNION ALL
    SELECT ledger_account_id, discarded_lock_version
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND discarded_lock_version IS NOT NULL
), counted AS (
    SELECT id, count(DISTINCT version) AS versions, max(version) AS highest
    FROM produced GROUP BY id
)
SELECT b.ledger_account_id AS account, b.lock_version AS found,
    coalesce(c.versions, 0) AS versions, coalesce(c.highest, 0) AS highest
FROM ledger_account_balances b LEFT JOIN counted c ON c.id = b.ledger_account_id
WHERE b.tenant_id = %(tenant)s
    AND (b.lock_version <> coalesce(c.versions, 0) OR b.lock_version <> coalesce(c.highest, 0))
ORDER BY 1 LIMIT %(limit)s
"""


def compare_lock_versions(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every account's lock version is the number of versions its entries produced, and the last."""
    for row in rows_of(connection, _LOCK_VERSIONS, tenant=tenant_id):
        expected = f"{row['versions']} versions, the last one {row['highest']}"
        message = "lock_version is not what the account's entries produced"
        findings.note("lock_versions", message, expected, row["found"], str(row["account"]))


_RESULTING: Final = """
WITH changes AS (
    SELECT id AS entry, ledger_account_id AS account, lock_version AS version,
        CASE WHEN status = 'pending' AND direction = 'debit' THEN amount ELSE 0 END AS a,
        CASE WHEN status = 'pending' AND direction = 'credit' THEN amount ELSE 0 END AS b,
        CASE WHEN status = 'posted' AND direction = 'debit' THEN amount ELSE 0 END AS c,
        CASE WHEN status = 'posted' AND direction = 'credit' THEN amount ELSE 0 END AS d,
        ARRAY[resulting_pending_debits, resulting_pending_credits,
            resulting_posted_debits, resulting_posted_credits] AS found
    FROM ledger_entries WHERE tenant_id = %(tenant)s
    UNION ALL
    SELECT NULL, ledger_account_id, discarded_lock_version,
        CASE WHEN status = 'pending' AND direction = 'debit' THEN -amount ELSE 0 END,
        CASE WHEN status = 'pending' AND direction = 'credit' THEN -amount ELSE 0 END,
        CASE WHEN status = 'posted' AND direction = 'debit' THEN -amount ELSE 0 END,
        CASE WHEN status = 'posted' AND direction = 'credit' THEN -amount ELSE 0 END,
        NULL
    FROM ledger_entries WHERE tenant_id = %(tenant)s AND discarded_lock_version IS NOT NULL
), running AS (
    -- Up to and with all changes of the same version. A window, not a join: without statistics the
    -- planner joins on the account alone, and a hot account's entries are squared.
    SELECT entry, account, found, ARRAY[
        sum(a) OVER up_to, sum(b) OVER up_to, sum(c) OVER up_to, sum(d) OVER up_to] AS expected
    FROM changes WINDOW up_to AS (PARTITION BY account ORDER BY version)
)
SELECT entry, account, array_to_string(expected, ', ') AS expected,
    array_to_string(found, ', ') AS found
FROM running WHERE entry IS NOT NULL AND found IS DISTINCT FROM expected
ORDER BY entry LIMIT %(limit)s
"""


def compare_resulting_balances(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every entry's resulting accumulators are the sums of all entries up to its version."""
    for row in rows_of(connection, _RESULTING, tenant=tenant_id):
        message = f"resulting {', '.join(ACCUMULATORS)} of entry {row['entry']}"
        findings.note(
            "resulting_balances", message, row["expected"], row["found"], str(row["account"])
        )


_LEDGER_SUMS: Final = """
SELECT a.ledger_id AS ledger, e.currency, e.currency_exponent, e.status,
    sum(e.amount) FILTER (WHERE e.direction = 'debit') AS debits,
    sum(e.amount) FILTER (WHERE e.direction = 'credit') AS credits
FROM ledger_entries e
LEFT JOIN ledger_accounts a ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
WHERE e.tenant_id = %(tenant)s AND e.discarded_at_us IS NULL
GROUP BY 1, 2, 3, 4
HAVING coalesce(sum(e.amount) FILTER (WHERE e.direction = 'debit'), 0)
    <> coalesce(sum(e.amount) FILTER (WHERE e.direction = 'credit'), 0)
ORDER BY 1, 2, 3, 4 LIMIT %(limit)s
"""


def compare_ledger_sums(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Per ledger, currency and status, debits equal credits."""
    for row in rows_of(connection, _LEDGER_SUMS, tenant=tenant_id):
        message = (
            f"ledger {row['ledger']}: {row['status']} {row['currency']} debits are not its credits"
        )
        findings.note("ledger_sums", message, row["debits"], row["credits"])


_TRANSACTION_SUMS: Final = """
SELECT e.ledger_transaction_id AS transaction, e.currency,
    string_agg(DISTINCT e.ledger_account_id::text, ', ') AS accounts,
    sum(e.amount) FILTER (WHERE e.direction = 'debit') AS debits,
    sum(e.amount) FILTER (WHERE e.direction = 'credit') AS credits
FROM ledger_entries e
WHERE e.tenant_id = %(tenant)s AND e.discarded_at_us IS NULL
GROUP BY e.ledger_transaction_id, e.currency, e.currency_exponent
HAVING coalesce(sum(e.amount) FILTER (WHERE e.direction = 'debit'), 0)
    <> coalesce(sum(e.amount) FILTER (WHERE e.direction = 'credit'), 0)
ORDER BY 1, 2 LIMIT %(limit)s
"""


def compare_transaction_sums(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every transaction is balanced per currency."""
    for row in rows_of(connection, _TRANSACTION_SUMS, tenant=tenant_id):
        message = f"transaction {row['transaction']}: {row['currency']} debits are not its credits"
        findings.note("transaction_sums", message, row["debits"], row["credits"], row["accounts"])


_BELONGING: Final = """
SELECT e.id AS entry, e.ledger_account_id AS account, CASE
    WHEN t.id IS NULL THEN 'its transaction is not there'
    WHEN a.id IS NULL THEN 'its account is not there'
    WHEN a.ledger_id <> t.ledger_id THEN 'its account is of another ledger than its transaction'
    WHEN e.discarded_at_us IS NULL AND e.status <> t.status
        THEN 'it is live in another status than its transaction'
    ELSE 'its currency or normal balance is not its account''s' END AS reason
FROM ledger_entries e
LEFT JOIN ledger_transactions t ON t.tenant_id = e.tenant_id AND t.id = e.ledger_transaction_id
LEFT JOIN ledger_accounts a ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
WHERE e.tenant_id = %(tenant)s AND (t.id IS NULL OR a.id IS NULL OR a.ledger_id <> t.ledger_id
    OR (e.discarded_at_us IS NULL AND e.status <> t.status)
    OR (e.currency, e.currency_exponent, e.normal_balance)
        IS DISTINCT FROM (a.currency, a.currency_exponent, a.normal_balance))
ORDER BY e.id LIMIT %(limit)s
"""

_WITHOUT_ENTRIES: Final = """
SELECT t.id AS transaction FROM ledger_transactions t
WHERE t.tenant_id = %(tenant)s AND NOT EXISTS (
    SELECT FROM ledger_entries e WHERE e.tenant_id = t.tenant_id
        AND e.ledger_transaction_id = t.id AND e.discarded_at_us IS NULL)
ORDER BY 1 LIMIT %(limit)s
"""


def compare_belonging(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every entry belongs to a transaction and an account of one ledger, and agrees with them."""
    for row in rows_of(connection, _BELONGING, tenant=tenant_id):
        message = f"entry {row['entry']}: {row['reason']}"
        findings.note("belonging", message, account=str(row["account"]))
    for row in rows_of(connection, _WITHOUT_ENTRIES, tenant=tenant_id):
        findings.note("belonging", f"transaction {row['transaction']} has no live entries")


_IMAGES: Final = """
WITH images AS (
    SELECT DISTINCT ON ({key}) * FROM {image} ORDER BY {key}, seq DESC
), present AS (
    SELECT * FROM {table} WHERE tenant_id = %(tenant)s
)
SELECT coalesce(p.{key}, i.{key}) AS id, {accounts} AS accounts,
    CASE WHEN p.{key} IS NOT NULL THEN to_jsonb(p)::text END AS found,
    CASE WHEN i.{key} IS NOT NULL THEN to_jsonb(i)::text END AS expected
FROM present p FULL JOIN images i ON i.{key} = p.{key}
WHERE p.{key} IS NULL OR i.{key} IS NULL OR ROW(p.*) IS DISTINCT FROM ROW(i.*)
ORDER BY 1 LIMIT %(limit)s
"""

_ACCOUNTS_OF: Final[dict[str, LiteralString]] = {
    "ledger_accounts": "coalesce(p.id, i.id)::text",
    "ledger_account_balances": "coalesce(p.ledger_account_id, i.ledger_account_id)::text",
    "ledger_entries": "coalesce(p.ledger_account_id, i.ledger_account_id)::text",
    "ledger_transactions": """(SELECT string_agg(DISTINCT e.ledger_account_id::text, ', ')
        FROM ledger_entries e WHERE e.tenant_id = %(tenant)s
        AND e.ledger_transaction_id = coalesce(p.id, i.id))""",
}
"""How a differing row names its accounts."""


def compare_images(
    connection: Connection, tenant_id: str, table: Table, findings: Findings
) -> None:
    """Every row of the table equals its last after-image in the journal; none is missing."""
    statement = sql.SQL(_IMAGES).format(
        key=sql.Identifier(table.key),
        image=sql.Identifier("pg_temp", image_table(table)),
        table=sql.Identifier(table.name),
        accounts=sql.SQL(_ACCOUNTS_OF.get(table.name, "NULL")),
    )
    check = f"journal_of_{table.name}"
    for row in rows_of(connection, statement, tenant=tenant_id):
        where = f"{table.name} {row['id']}"
        expected, found = row["expected"], row["found"]
        if found is None:
            findings.note(check, f"{where} is in the journal only", account=row["accounts"])
        elif expected is None:
            findings.note(check, f"{where} is not in the journal", account=row["accounts"])
        else:
            _note_columns(check, where, json.loads(expected), json.loads(found), row, findings)


def _note_columns(
    check: str, where: str, expected: _Row, found: _Row, row: _Row, findings: Findings
) -> None:
    differing = [name for name in expected if expected[name] != found[name]]
    findings.note(
        check,
        f"{where}: {', '.join(differing)} not as in the journal",
        ", ".join(f"{name} = {expected[name]}" for name in differing),
        ", ".join(f"{name} = {found[name]}" for name in differing),
        row["accounts"],
    )


_KEYS: Final = """
SELECT k.digest, k.seq FROM idempotency_keys k
WHERE k.tenant_id = %(tenant)s AND NOT EXISTS (
    SELECT FROM {image} i
    WHERE i.digest = k.digest AND i.seq = k.seq AND i.created_at_us = k.created_at_us)
ORDER BY k.seq LIMIT %(limit)s
"""


def compare_idempotency_keys(connection: Connection, tenant_id: str, findings: Findings) -> None:
    """Every idempotency key is the one of the record at its sequence."""
    statement = sql.SQL(_KEYS).format(image=sql.Identifier("pg_temp", KEYS_TABLE))
    for row in rows_of(connection, statement, tenant=tenant_id):
        message = f"idempotency key {row['digest']} is not of the record at sequence {row['seq']}"
        findings.note("idempotency_keys", message)


def analyze_images(connection: Connection) -> None:
    """Tell the planner how large the temporary tables are; it assumes very little otherwise."""
    for name in (*(image_table(table) for table in ROW_TABLES), KEYS_TABLE):
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("pg_temp", name)))
