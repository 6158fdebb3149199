"""Method: 49,102 real bank transactions go through `cloister load`, as a user would run it, into a
platform of real processes; the load is interrupted and killed on its way. What the platform holds
then is compared with sums made from the file itself, and with the bank's own balances.

The data is no part of this repository: CLOISTER_BERKA names the file (trans.asc.gz, the first rows
of the PKDD'99 Discovery Challenge's transactions), else it is looked for beside the repository.
"""

import csv
import gzip
import json
import os
import signal
from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
FILE = Path(
    os.environ.get("CLOISTER_BERKA") or ROOT.parent / "shared" / "data" / "berka" / "trans.asc.gz"
)
MAPPING = ROOT / "examples" / "berka.yaml"

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there (CLOISTER_BERKA)"),
]

ROWS = 49_102
ACCOUNTS = 1_229
TOTAL = 3_924_614_280
"""In hundredths of a koruna: the exact sum of all customers' movements."""

LAST_DAY = date(1994, 3, 31)
"""The file is cut within it."""

TOLERANCE_PER_INTEREST_ROW = 10
"""The bank rounded interest internally, the file's amounts are what it printed."""

DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRow:
    trans_id: str
    account_id: str
    day: date
    change: int
    """To the customer's balance."""
    balance: int
    """The bank's own, after the row."""
    is_interest: bool


def hundredths(text: str) -> int:
    return int(Decimal(text).scaleb(2).to_integral_exact())


@pytest.fixture(scope="module")
def bank() -> list[BankRow]:
    """The file, read without any of the code under test."""
    with gzip.open(FILE, "rt", encoding="latin-1", newline="") as file:
        return [
            BankRow(
                trans_id=row["trans_id"],
                account_id=row["account_id"],
                day=datetime.strptime(row["date"], "%y%m%d").date(),
                change=hundredths(row["amount"]) * (1 if row["type"] == "PRIJEM" else -1),
                balance=hundredths(row["balance"]),
                is_interest=row["k_symbol"] == "UROK",
            )
            for row in csv.DictReader(file, delimiter=";")
        ]


@pytest.fixture(scope="module")
def tenant(platform: Any) -> Any:
    """The tenant after a load that was interrupted, killed, and completed."""
    tenant = platform.create_tenant("bank")
    code, stdout, _ = tenant.interrupt_load(MAPPING, FILE, "berka", 2_000, signal.SIGINT)
    interrupted = json.loads(stdout)
    assert code == 130
    assert 2_000 <= interrupted["rows"] < ROWS
    assert interrupted["rows"] == interrupted["loaded"]
    code, stdout, _ = tenant.interrupt_load(MAPPING, FILE, "berka", 2_000, signal.SIGKILL)
    assert (code, stdout) == (-signal.SIGKILL, "")
    done = tenant.load(MAPPING, FILE)
    assert (done["rows"], done["rejected"], done["reject_file"]) == (ROWS, 0, None)
    assert done["loaded"] + done["already_loaded"] == ROWS
    # What the killed run had posted beyond its checkpoint is among them.
    assert interrupted["loaded"] + 2_000 <= done["already_loaded"] < ROWS
    return tenant


def test_every_balance_is_the_exact_sum_of_its_rows(tenant: Any, bank: list[BankRow]) -> None:
    sums: dict[str, int] = defaultdict(int)
    for row in bank:
        sums[f"customer:{row.account_id}"] += row.change
    with tenant.client() as client:
        accounts = list(client.ledger_accounts.list(per_page=100))
    customers = {a.external_id: a for a in accounts if a.normal_balance == "credit"}
    banks_own = [a for a in accounts if a.normal_balance == "debit"]
    assert len(customers) == ACCOUNTS
    posted = {name: a.balances.posted_balance.amount for name, a in customers.items()}
    assert posted == sums
    assert sum(posted.values()) == TOTAL
    # Credits of customers against debits of the bank: over all accounts the sum is zero.
    assert sum(a.balances.posted_balance.amount for a in banks_own) == TOTAL
    assert len(banks_own) == 18
    for account in accounts:
        assert account.balances.pending_balance.amount == account.balances.posted_balance.amount


def test_balances_follow_the_banks_own_column_day_by_day(tenant: Any, bank: list[BankRow]) -> None:
    ours = end_of_day_balances(tenant.platform.auditor_dsn(tenant.cell), tenant.organization_id)
    interest_rows: dict[str, int] = defaultdict(int)
    days: dict[tuple[date, str], list[BankRow]] = defaultdict(list)
    for row in bank:
        days[row.day, row.account_id].append(row)
    compared = 0
    for (day, account_id), rows in days.items():
        interest_rows[account_id] += sum(row.is_interest for row in rows)
        if day == LAST_DAY:
            continue
        tolerance = TOLERANCE_PER_INTEREST_ROW * interest_rows[account_id]
        balance = ours[day, account_id]
        assert any(abs(balance - end) <= tolerance for end in banks_balances(rows)), (day, rows)
        compared += 1
    assert compared == 38_821


def banks_balances(rows: list[BankRow]) -> list[int]:
    """The bank's balance at the end of an account's day, whose rows are not in the bank's order.

    It is the balance that no other row of the day starts from; all of them if that is not one.
    """
    ends = [
        row.balance
        for row in rows
        if not any(
            abs(other.balance - other.change - row.balance) <= TOLERANCE_PER_INTEREST_ROW
            for other in rows
            if other is not row
        )
    ]
    return ends if len(ends) == 1 else [row.balance for row in rows]


DAILY = """
SELECT substr(a.external_id, 10), (timestamptz 'epoch' + e.effective_at_us * interval '1 us')
        AT TIME ZONE 'UTC' AS at,
    sum(CASE e.direction WHEN 'credit' THEN e.amount ELSE -e.amount END)
FROM ledger_entries e
JOIN ledger_accounts a ON a.tenant_id = e.tenant_id AND a.id = e.ledger_account_id
WHERE e.tenant_id = %s AND a.external_id LIKE 'customer:%%' AND e.discarded_at_us IS NULL
    AND e.status = 'posted'
GROUP BY 1, 2 ORDER BY 2
"""


def end_of_day_balances(dsn: str, tenant_id: str) -> dict[tuple[date, str], int]:
    """Running sums of the entries that the cell's database holds."""
    running: dict[str, int] = defaultdict(int)
    balances = {}
    with psycopg.connect(dsn) as connection:
        for account_id, at, change in connection.execute(DAILY, (tenant_id,)):
            assert (at.hour, at.minute, at.second) == (0, 0, 0)
            running[account_id] += int(change)
            balances[at.date(), account_id] = running[account_id]
    return balances


def test_the_api_lists_what_was_loaded(tenant: Any, bank: list[BankRow]) -> None:
    """A few accounts entry by entry, and one transaction field by field."""
    with tenant.client() as client:
        for account_id in ("2378", "576", bank[-1].account_id):
            account = client.ledger_accounts.retrieve(f"customer:{account_id}")
            listed = client.ledger_entries.list(ledger_account_id=account.id, per_page=100)
            changes = sorted(e.amount if e.direction == "credit" else -e.amount for e in listed)
            assert changes == sorted(r.change for r in bank if r.account_id == account_id)
        first = client.ledger_transactions.retrieve(bank[0].trans_id)
    assert first.effective_at.isoformat() == "1993-01-01T00:00:00+00:00"
    assert first.status == "posted"
    assert first.description == "Cash deposit"
    assert first.metadata == {"type": "PRIJEM", "operation": "VKLAD"}
    assert [(e.direction, e.amount) for e in first.ledger_entries] == [
        ("debit", 70_000),
        ("credit", 70_000),
    ]


def test_loading_again_does_nothing(tenant: Any, tmp_path: Path) -> None:
    again = tenant.load(MAPPING, FILE)
    assert (again["loaded"], again["already_loaded"]) == (0, ROWS)
    # Without its checkpoint, and beyond it: every row is posted again, to no effect.
    part = tmp_path / "part.csv"
    with gzip.open(FILE, "rb") as file:
        part.write_bytes(b"".join(file.readline() for _ in range(1_001)))
    again = tenant.load(MAPPING, part, "--no-resume")
    assert (again["rows"], again["loaded"], again["already_loaded"]) == (1_000, 0, 1_000)


def test_rows_that_cannot_be_loaded_are_reported_and_no_others(tenant: Any, tmp_path: Path) -> None:
    with gzip.open(FILE, "rb") as file:
        header, first, second = (file.readline() for _ in range(3))
    bad = tmp_path / "bad.csv"
    bad.write_bytes(
        header
        + first
        + second.replace(b";900.00;", b";901.00;")
        + b'1;2;930101;"PRIJEM";"VKLAD";7.005;0;"";;\n'
        + b'2;2;930101;"ODKUD";"VKLAD";7.00;0;"";;\n'
        + b'3;2;930101;"PRIJEM;7.00\n'
    )
    rejects = tmp_path / "why.csv"
    done = tenant.load(MAPPING, bad, "--rejects", str(rejects), expected=1)
    assert (done["rows"], done["loaded"], done["already_loaded"]) == (5, 0, 1)
    assert (done["rejected"], done["reject_file"]) == (4, str(rejects))
    with rejects.open(encoding="latin-1", newline="") as written:
        found = {row["line"]: row for row in csv.DictReader(written)}
    assert "conflict: transaction '171812' is there with other entries" in found["3"]["reason"]
    assert "3 decimals" in found["4"]["reason"]
    assert "no rule matches: type = 'ODKUD'" in found["5"]["reason"]
    assert "malformed" in found["6"]["reason"]
    assert found["4"]["row"] == '1;2;930101;"PRIJEM";"VKLAD";7.005;0;"";;'


def test_the_tenant_verifies(tenant: Any) -> None:
    report = tenant.verify()
    assert report["ok"]
    assert report["differences"] == []
    assert (report["tenant"], report["cell"]) == ("bank", tenant.cell)
    assert report["accounts"] == ACCOUNTS + 18
    assert report["transactions"] == ROWS
    assert report["entries"] == 2 * ROWS
    # The API key, the ledger, its accounts and its transactions.
    assert report["last_seq"] == 1 + 1 + ACCOUNTS + 18 + ROWS
