"""The usual solution, as a yardstick: one database transaction per ledger transaction, row locks.

Per transaction: BEGIN; INSERT of the idempotency key; UPDATE of the debited account, guarded by its
balance; UPDATE of the credited account; INSERT of the transaction; INSERT of both entries; COMMIT.
It is given every advantage that does not change what it is:
- the client is pgbench (C, prepared statements, 8 connections on 2 threads), so that no Python is
  in its way; values come from the client without any HTTP or JSON;
- accounts are locked in the order of their ids, so that nothing ever deadlocks and is repeated, and
  the hot account has the highest id, so that its lock is taken last and held shortest;
- bigint money, no foreign keys, no journal, no metadata, one index on entries beside the key, both
  entries in one statement, fillfactor 70 where rows are updated.
"""

import re
import subprocess
from pathlib import Path
from typing import Final

import psycopg

from benchmarks.errors import Refused, Skipped, Wrong
from infra.local.binaries import find_binaries

ACCOUNTS: Final = 10_000
CLIENTS: Final = 8
THREADS: Final = 2
FUNDS: Final = 10**15
AMOUNT_MAX: Final = 1_000
EXTRA_S_MAX: Final = 60

SCHEMA: Final = """
DROP TABLE IF EXISTS accounts, transactions, entries, idempotency_keys;
CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0),
    version bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE TABLE transactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    description text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id bigint NOT NULL,
    account_id bigint NOT NULL,
    delta bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX entries_account ON entries (account_id, id);
CREATE TABLE idempotency_keys (
    key uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""

CHOOSE_UNIFORM: Final = rf"""
\set debited random(1, {ACCOUNTS})
\set credited random(1, {ACCOUNTS} - 1)
\if :credited >= :debited
\set credited :credited + 1
\endif
"""

CHOOSE_HOT: Final = rf"""
\set debited random(1, {ACCOUNTS} - 1)
\set credited {ACCOUNTS}
\set turn random(0, 1)
\if :turn
\set credited :debited
\set debited {ACCOUNTS}
\endif
"""

# `\gset` demands one row: a debit that the guard refuses would end the client, and with it the run.
DEBIT: Final = r"""
UPDATE accounts SET balance = balance - :amount, version = version + 1
    WHERE id = :debited AND balance >= :amount RETURNING balance AS debited_balance \gset
"""
CREDIT: Final = r"""
UPDATE accounts SET balance = balance + :amount, version = version + 1 WHERE id = :credited;
"""

TRANSACTION: Final = rf"""
\set amount random(1, {AMOUNT_MAX})
BEGIN;
INSERT INTO idempotency_keys (key) VALUES (gen_random_uuid());
\if :debited < :credited
{DEBIT}{CREDIT}
\else
{CREDIT}{DEBIT}
\endif
INSERT INTO transactions (description) VALUES ('transfer') RETURNING id AS transaction \gset
INSERT INTO entries (transaction_id, account_id, delta)
    VALUES (:transaction, :debited, -(:amount::bigint)), (:transaction, :credited, :amount);
COMMIT;
"""

INVARIANTS: Final = f"""
SELECT
    (SELECT coalesce(sum(delta), 0) FROM entries),
    (SELECT count(*) FROM accounts a LEFT JOIN (
        SELECT account_id, sum(delta) AS delta, count(*) AS n FROM entries GROUP BY account_id
     ) e ON e.account_id = a.id
     WHERE a.balance <> {FUNDS} + coalesce(e.delta, 0) OR a.version <> coalesce(e.n, 0)),
    (SELECT count(*) FROM transactions) - (SELECT count(*) FROM idempotency_keys),
    (SELECT count(*) FROM transactions)
"""


def prepare_usual(dsn: str) -> None:
    """Make the tables anew, with every account funded."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO accounts (id, balance) SELECT id, %s FROM generate_series(1, %s) id",
            (FUNDS, ACCOUNTS),
        )
        connection.execute("VACUUM ANALYZE accounts")


def run_usual(dsn: str, directory: Path, seconds: float, *, hot: bool) -> float:
    """Transactions per second of one run on fresh tables, invariants checked after it.

    Raises Skipped without pgbench, Wrong when a client failed or an invariant is broken, Refused
    when it is not done in time.
    """
    pgbench = Path(find_binaries().path("pgbench"))
    if not pgbench.exists():
        raise Skipped(f"no pgbench beside the server's binaries ({pgbench})")
    prepare_usual(dsn)
    script = directory / "usual.sql"
    script.write_text(without_blank_lines((CHOOSE_HOT if hot else CHOOSE_UNIFORM) + TRANSACTION))
    clients = [f"--client={CLIENTS}", f"--jobs={THREADS}", f"--time={max(1, round(seconds))}"]
    options = ["--no-vacuum", "--protocol=prepared", f"--file={script}"]
    deadline_s = seconds + EXTRA_S_MAX
    try:
        done = subprocess.run(
            [str(pgbench), *clients, *options, f"--dbname={dsn}"],
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Refused(f"pgbench was not done after {deadline_s:.0f} s") from exc
    rate = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or rate is None or "abort" in done.stderr:
        raise Wrong(f"pgbench failed: {done.stderr.strip() or done.stdout}")
    check_usual(dsn)
    return float(rate[1])


def without_blank_lines(script: str) -> str:
    return "".join(line + "\n" for line in script.splitlines() if line.strip())


def check_usual(dsn: str) -> int:
    """The number of transactions; raises Wrong when a balance differs from its entries."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(INVARIANTS).fetchone()
    assert row is not None
    total, differing, unmatched, transactions = row
    if total != 0 or differing != 0 or unmatched != 0:
        raise Wrong(
            f"the usual solution broke: deltas sum to {total}, {differing} accounts differ from"
            f" their entries, {unmatched} transactions without a key"
        )
    return int(transactions)
