"""The audit of a cell's database that every test of the cell ends with.

Method: what must always hold is asked in SQL, which shares nothing with the write path: each query
lists what is wrong and must return no row. Then the journal is folded and executed again: its
after-images must be exactly the rows of the tables, and the rules, given the same command, stamp
and state, must return the same effects.
"""

import hashlib
from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import psycopg
from complete_state import CompleteWorkingSet

from cell.journal import Record, decode_body
from cell.ledger.model import (
    AccountBalances,
    Effects,
    Row,
    Stamp,
    TenantId,
)
from cell.ledger.rules import apply
from cell.rows import read_as_model, row_from
from cell.sequencer import KEY_LIFETIME_US
from cell.state import TenantView
from cell.tables import ROW_TABLES

CHECKS = {
    "balances are the sums of the live entries": """
        WITH sums AS (
            SELECT tenant_id, ledger_account_id,
                sum(amount) FILTER (WHERE status = 'pending' AND direction = 'debit') AS pd,
                sum(amount) FILTER (WHERE status = 'pending' AND direction = 'credit') AS pc,
                sum(amount) FILTER (WHERE status = 'posted' AND direction = 'debit') AS od,
                sum(amount) FILTER (WHERE status = 'posted' AND direction = 'credit') AS oc
            FROM ledger_entries WHERE discarded_at_us IS NULL
            GROUP BY tenant_id, ledger_account_id)
        SELECT * FROM ledger_account_balances b
        FULL JOIN sums s USING (tenant_id, ledger_account_id)
        WHERE b.seq IS NULL
            OR (b.pending_debits, b.pending_credits, b.posted_debits, b.posted_credits)
            IS DISTINCT FROM
                (coalesce(pd, 0), coalesce(pc, 0), coalesce(od, 0), coalesce(oc, 0))""",
    "every account has balances, and no others have": """
        SELECT * FROM ledger_accounts a FULL JOIN ledger_account_balances b
            ON a.tenant_id = b.tenant_id AND a.id = b.ledger_account_id
        WHERE a.id IS NULL OR b.ledger_account_id IS NULL""",
    "lock_version counts the writes of the account, and each has left a trace": """
        WITH versions AS (
            SELECT tenant_id, ledger_account_id, lock_version AS v FROM ledger_entries
            UNION
            SELECT tenant_id, ledger_account_id, discarded_lock_version FROM ledger_entries
            WHERE discarded_at_us IS NOT NULL),
        counted AS (
            SELECT tenant_id, ledger_account_id, max(v) AS last, count(*) FILTER (WHERE v > 0) AS n
            FROM versions GROUP BY tenant_id, ledger_account_id)
        SELECT * FROM ledger_account_balances b
        LEFT JOIN counted c USING (tenant_id, ledger_account_id)
        WHERE (b.lock_version, b.lock_version)
            IS DISTINCT FROM (coalesce(last, 0), coalesce(n, 0))""",
    "an entry is discarded after it was made": """
        SELECT * FROM ledger_entries
        WHERE discarded_lock_version <= lock_version OR discarded_at_us <= created_at_us""",
    "debits equal credits per ledger, currency and status": """
        SELECT a.tenant_id, a.ledger_id, e.currency, e.currency_exponent, e.status
        FROM ledger_entries e JOIN ledger_accounts a
            ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
        WHERE e.discarded_at_us IS NULL GROUP BY 1, 2, 3, 4, 5
        HAVING sum(CASE e.direction WHEN 'debit' THEN e.amount ELSE -e.amount END) <> 0""",
    "each transaction balances, in its own ledger and status, both sides there": """
        SELECT t.id FROM ledger_transactions t
        LEFT JOIN ledger_entries e ON e.tenant_id = t.tenant_id
            AND e.ledger_transaction_id = t.id AND e.discarded_at_us IS NULL
        LEFT JOIN ledger_accounts a ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
        GROUP BY t.tenant_id, t.id, t.status, t.ledger_id
        HAVING count(DISTINCT e.direction) < 2 OR bool_or(e.status <> t.status)
            OR bool_or(a.ledger_id IS DISTINCT FROM t.ledger_id)
            OR sum(CASE e.direction WHEN 'debit' THEN e.amount ELSE -e.amount END) <> 0""",
    "entries carry their account's currency and normal balance": """
        SELECT e.id FROM ledger_entries e LEFT JOIN ledger_accounts a
            ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
        WHERE (a.currency, a.currency_exponent, a.normal_balance)
            IS DISTINCT FROM (e.currency, e.currency_exponent, e.normal_balance)""",
    "the entries of an account's last write show its balances": """
        SELECT e.id FROM ledger_entries e JOIN ledger_account_balances b
            USING (tenant_id, ledger_account_id)
        WHERE e.lock_version = b.lock_version AND
            (e.resulting_pending_debits, e.resulting_pending_credits,
             e.resulting_posted_debits, e.resulting_posted_credits)
            <> (b.pending_debits, b.pending_credits, b.posted_debits, b.posted_credits)""",
    "the journal is dense and chained, with the right hashes": """
        SELECT * FROM (
            SELECT *, lag(last_seq) OVER w AS seq_before, lag(hash) OVER w AS hash_before
            FROM journal WINDOW w AS (PARTITION BY tenant_id ORDER BY first_seq)) j
        WHERE first_seq <> coalesce(seq_before, 0) + 1 OR last_seq < first_seq OR format <> 1
            OR prev_hash <> coalesce(hash_before, sha256(''))
            OR hash <> sha256(prev_hash || body)""",
    "heads stand where their journal ends": """
        SELECT * FROM tenant_heads h FULL JOIN (
            SELECT DISTINCT ON (tenant_id) tenant_id, last_seq, hash FROM journal
            ORDER BY tenant_id, first_seq DESC) j USING (tenant_id)
        WHERE h.tenant_id IS NULL OR h.last_seq <> coalesce(j.last_seq, 0)
            OR h.last_hash <> coalesce(j.hash, sha256(''))""",
    "a day's shift is what its entries' dates move, of all that is not written as dated": """
        WITH moved AS (
            SELECT e.tenant_id, e.ledger_account_id, s.day, e.status, e.direction,
                s.sign * e.amount AS amount
            FROM ledger_entries e CROSS JOIN LATERAL (VALUES
                (e.effective_at_us, 1), (e.created_at_us, -1),
                (CASE WHEN e.discarded_at_us IS NOT NULL THEN e.effective_at_us END, -1),
                (e.discarded_at_us, 1)
            ) AS c (at_us, sign)
            CROSS JOIN LATERAL (SELECT floor(c.at_us / 86400e6)::int, c.sign) AS s (day, sign)
            WHERE c.at_us IS NOT NULL),
        sums AS (
            SELECT tenant_id, ledger_account_id, day,
                coalesce(sum(amount) FILTER (
                    WHERE status = 'pending' AND direction = 'debit'), 0) AS pd,
                coalesce(sum(amount) FILTER (
                    WHERE status = 'pending' AND direction = 'credit'), 0) AS pc,
                coalesce(sum(amount) FILTER (
                    WHERE status = 'posted' AND direction = 'debit'), 0) AS od,
                coalesce(sum(amount) FILTER (
                    WHERE status = 'posted' AND direction = 'credit'), 0) AS oc
            FROM moved GROUP BY 1, 2, 3)
        SELECT * FROM sums
        FULL JOIN ledger_account_day_shifts s USING (tenant_id, ledger_account_id, day)
        WHERE (coalesce(pd, 0), coalesce(pc, 0), coalesce(od, 0), coalesce(oc, 0)) <>
            (coalesce(s.pending_debits, 0), coalesce(s.pending_credits, 0),
             coalesce(s.posted_debits, 0), coalesce(s.posted_credits, 0))""",
    "the shifts of an account sum up to zero": """
        SELECT tenant_id, ledger_account_id FROM ledger_account_day_shifts GROUP BY 1, 2
        HAVING (sum(pending_debits), sum(pending_credits), sum(posted_debits), sum(posted_credits))
            <> (0, 0, 0, 0)""",
    "an account's entries are in the order of its versions": """
        SELECT * FROM (
            SELECT *, lag(lock_version) OVER (
                PARTITION BY tenant_id, ledger_account_id ORDER BY id) AS version_before
            FROM ledger_entries
        ) AS in_order WHERE version_before > lock_version""",
    "a version that wrote no entry of the account is kept as such, and no other": """
        SELECT * FROM (
            SELECT DISTINCT e.tenant_id, e.ledger_account_id,
                e.discarded_lock_version AS lock_version, e.discarded_at_us AS created_at_us
            FROM ledger_entries e WHERE e.discarded_at_us IS NOT NULL AND NOT EXISTS (
                SELECT FROM ledger_entries n WHERE n.tenant_id = e.tenant_id
                    AND n.ledger_account_id = e.ledger_account_id
                    AND n.lock_version = e.discarded_lock_version
                    AND n.created_at_us = e.discarded_at_us)) AS bare
        FULL JOIN ledger_account_bare_versions b
            USING (tenant_id, ledger_account_id, lock_version, created_at_us)
        WHERE bare.tenant_id IS NULL OR b.seq IS NULL""",
    "idempotency keys name journaled sequences": """
        SELECT k.* FROM idempotency_keys k LEFT JOIN tenant_heads h USING (tenant_id)
        WHERE h.tenant_id IS NULL OR k.seq NOT BETWEEN 1 AND h.last_seq""",
    "settled entries are posted, live, and as their settlement has them": """
        SELECT m.id FROM settlement_entries m LEFT JOIN ledger_entries e USING (tenant_id, id)
        LEFT JOIN ledger_account_settlements s
            ON s.tenant_id = m.tenant_id AND s.id = m.settlement_id
        WHERE (e.ledger_account_id, e.ledger_transaction_id, e.direction, e.amount,
            e.effective_at_us) IS DISTINCT FROM (m.ledger_account_id, m.ledger_transaction_id,
            m.direction, m.amount, m.effective_at_us)
            OR NOT m.is_own AND (e.status <> 'posted' OR e.discarded_at_us IS NOT NULL)
            OR m.settlement_id IS NOT NULL
                AND s.settled_ledger_account_id IS DISTINCT FROM m.ledger_account_id""",
    "a settlement's sums are those of the entries it holds": """
        SELECT s.id FROM ledger_account_settlements s LEFT JOIN settlement_entries m
            ON m.tenant_id = s.tenant_id AND m.settlement_id = s.id AND NOT m.is_own
        GROUP BY s.tenant_id, s.id
        HAVING s.gathered_debits <>
                coalesce(sum(m.amount) FILTER (WHERE m.direction = 'debit'), 0)
            OR s.gathered_credits <>
                coalesce(sum(m.amount) FILTER (WHERE m.direction = 'credit'), 0)
            OR s.status = 'archived' AND count(m.id) > 0
            OR s.status IN ('pending', 'posted')
                AND s.amount <> abs(s.gathered_credits - s.gathered_debits)""",
    "a settlement and its transaction are of one status and amount": """
        SELECT s.id FROM ledger_account_settlements s
        LEFT JOIN ledger_transactions t
            ON t.tenant_id = s.tenant_id AND t.id = s.ledger_transaction_id
        LEFT JOIN ledger_entries e
            ON e.tenant_id = t.tenant_id AND e.ledger_transaction_id = t.id
            AND e.ledger_account_id = s.settled_ledger_account_id AND e.discarded_at_us IS NULL
        WHERE s.ledger_transaction_id IS NOT NULL
            AND (t.status::text <> replace(s.status::text, 'archiving', 'archived')
                OR (e.amount, e.direction) IS DISTINCT FROM
                    (s.amount, s.settlement_entry_direction))
            OR s.ledger_transaction_id IS NULL AND NOT s.skips_transaction
                AND s.status IN ('pending', 'posted')""",
    "bulk requests count their results": """
        SELECT q.id FROM bulk_requests q FULL JOIN (
            SELECT tenant_id, request_id, count(*) AS n,
                count(*) FILTER (WHERE status = 'successful') AS good,
                count(*) FILTER (WHERE status = 'failed') AS bad
            FROM bulk_results GROUP BY 1, 2) r ON r.tenant_id = q.tenant_id AND r.request_id = q.id
        WHERE (q.total_count, q.success_count, q.failed_count) IS DISTINCT FROM (n, good, bad)""",
    **{
        f"no row of {table.name} is beyond its tenant's head": f"""
        SELECT r.* FROM {table.name} r LEFT JOIN tenant_heads h USING (tenant_id)
        WHERE h.tenant_id IS NULL OR r.seq NOT BETWEEN 1 AND h.last_seq"""
        for table in ROW_TABLES
    },
}


def assert_ledger_holds(superuser_dsn: str) -> None:
    """Raise AssertionError, naming what is wrong, unless the whole cell's database is right."""
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        wrong = {}
        for name, query in CHECKS.items():
            found = connection.execute(query).fetchmany(3)
            if found:
                wrong[name] = found
        assert not wrong, wrong
        audit_journal(connection)


def audit_journal(connection: psycopg.Connection[Any]) -> None:
    read_as_model(connection)  # type: ignore[arg-type]  # registers loaders, on either kind
    journal: dict[TenantId, list[Record]] = defaultdict(list)
    segments = connection.execute(
        "SELECT tenant_id, first_seq, last_seq, epoch, body FROM journal ORDER BY 1, 2"
    )
    for tenant_id, first_seq, last_seq, epoch, body in segments:
        content = decode_body(bytes(body))
        place = (content.tenant_id, content.first_seq, content.last_seq, content.epoch)
        assert place == (tenant_id, first_seq, last_seq, epoch), "a body is of another place"
        assert [r.seq for r in content.records] == list(range(first_seq, last_seq + 1))
        journal[tenant_id] += content.records
    folded: set[tuple[Any, ...]] = set()
    for tenant_id, records in journal.items():
        times = [record.at_us for record in records]
        assert all(a < b for a, b in pairwise(times)), "times do not increase"
        assert_last_time(connection, tenant_id, times[-1])
        folded |= {comparable(row) for row in executed_again(tenant_id, records)}
        audit_keys(connection, tenant_id, records)
    assert rows_of_tables(connection) == folded, "the tables are not the fold of the journal"


def assert_last_time(connection: psycopg.Connection[Any], tenant_id: str, at_us: int) -> None:
    query = "SELECT last_at_us FROM tenant_heads WHERE tenant_id = %s"
    assert connection.execute(query, (tenant_id,)).fetchone() == (at_us,)


def executed_again(tenant_id: TenantId, records: list[Record]) -> list[Row]:
    """The tenant's rows after its last record, by the after-images and by the rules alike."""
    working_set = CompleteWorkingSet()
    view = TenantView(tenant_id, working_set)
    rows: dict[tuple[type[Row], str], Row] = {}
    for record in records:
        stamp = Stamp(record.seq, record.at_us, record.id_base)
        effects = Effects(inserted=record.inserted, updated=record.updated)
        for row in (*effects.inserted, *effects.updated):
            assert row.tenant_id == tenant_id, f"record {record.seq} holds another tenant's row"
            assert row.seq == record.seq
            rows[type(row), identity(row)] = row
        again = apply(record.command, view, stamp)
        assert again == effects, f"record {record.seq} is not what its command does"
        working_set.commit(effects)
    return list(rows.values())


def identity(row: Row) -> str:
    return row.ledger_account_id if isinstance(row, AccountBalances) else row.id


def comparable(row: Row) -> tuple[Any, ...]:
    return type(row), msgspec.json.encode(row, order="sorted")


def rows_of_tables(connection: psycopg.Connection[Any]) -> set[tuple[Any, ...]]:
    found = set()
    for table in ROW_TABLES:
        query = f"SELECT {', '.join(table.columns)} FROM {table.name}"
        for values in connection.execute(query):
            found.add(comparable(row_from(table.row, values)))
    return found


def audit_keys(
    connection: psycopg.Connection[Any], tenant_id: TenantId, records: list[Record]
) -> None:
    """Each idempotency key points at its last use; only those past their time may be gone."""
    stored = {
        digest: (seq, at_us)
        for digest, seq, at_us in connection.execute(
            "SELECT digest, seq, created_at_us FROM idempotency_keys WHERE tenant_id = %s",
            (tenant_id,),
        )
    }
    uses: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.idempotency_key is not None:
            assert record.api_key_id is not None
            text = f"{record.api_key_id}\0{record.idempotency_key}".encode()
            digest = hashlib.blake2b(text, digest_size=16).hexdigest()
            spelled = "-".join(
                (digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:])
            )
            uses[spelled].append(record)
    assert stored.keys() <= uses.keys(), "a key was never journaled"
    for digest, applied in uses.items():
        gaps = pairwise(applied)
        assert all(b.at_us - a.at_us >= KEY_LIFETIME_US for a, b in gaps), "a key had two effects"
        last = (applied[-1].seq, applied[-1].at_us)
        expired = records[-1].at_us - applied[-1].at_us >= KEY_LIFETIME_US
        assert stored.get(digest) == last or (expired and digest not in stored)
