"""Method: a small file goes through `cloister load` into a platform of real processes; then what
must not happen is tried: repeats, other content, bad rows, wrong keys, a damaged database."""

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

MAPPING = """\
dataset: {dataset}
ledger: {{name: Small, metadata: {{source: test}}}}
accounts:
  cash: {{external_id: cash, name: Cash, normal_balance: debit, currency: EUR}}
  customer:
    external_id: "customer:{{who}}"
    name: "{{who}}"
    description: "Customer {{who}}"
    normal_balance: credit
    currency: EUR
transactions:
  external_id: "{{id}}"
  effective_at: {{column: day, format: "%Y-%m-%d", timezone: Europe/Prague}}
  amount: {{column: amount, decimal_mark: ","}}
  description: "{{note}}"
  metadata: {{note: "{{note}}"}}
rules:
  - {{when: {{kind: in}}, entries: [{{debit: cash}}, {{credit: customer}}]}}
  - {{when: {{kind: out}}, entries: [{{debit: customer}}, {{credit: cash}}]}}
"""
ROWS = 300


class Files:
    """A mapping and a file of rows, in a directory of its own."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.mapping = folder / "map.yaml"
        self.mapping.write_text(MAPPING.format(dataset=dataset))
        self.rows = folder / "rows.csv"
        self.rejects = folder / "why.csv"
        self.write([row(number) for number in range(ROWS)])

    def write(self, rows: list[str]) -> None:
        self.rows.write_text("\n".join(["id,who,day,amount,kind,note", *rows]) + "\n")

    def reasons(self) -> dict[str, str]:
        """By line."""
        with self.rejects.open(newline="") as file:
            return {row["line"]: row["reason"] for row in csv.DictReader(file)}


def row(number: int, **changed: str) -> str:
    values = {
        "id": f"t/{number}",
        "who": f"Žofie {number % 7}",
        "day": "2024-07-01",
        "amount": f'"{number},{number % 100:02}"',
        "kind": "in" if number % 3 else "out",
        "note": f'"quoted ""{number}"", ř"',
    }
    return ",".join((values | changed).values())


@pytest.fixture(scope="module")
def tenant(platform: Any) -> Any:
    return platform.create_tenant("small")


@pytest.fixture
def files(tmp_path: Path, request: pytest.FixtureRequest) -> Files:
    dataset = request.node.name.removeprefix("test_").replace("[", "-").replace("]", "")[:60]
    return Files(tmp_path, dataset)


def load(tenant: Any, files: Files, *more: str, expected: int = 0) -> dict[str, Any]:
    arguments = ("--rejects", str(files.rejects), *more)
    summary: dict[str, Any] = tenant.load(files.mapping, files.rows, *arguments, expected=expected)
    assert summary["rows"] == sum(summary[k] for k in ("loaded", "already_loaded", "rejected"))
    return summary


def ledger(tenant: Any, files: Files) -> Any:
    dataset = files.mapping.read_text().split()[1]
    with tenant.client() as client:
        (found,) = client.ledgers.list(metadata={"cloister_dataset": dataset})
    return found


def test_a_file_becomes_a_ledger(tenant: Any, files: Files) -> None:
    summary = load(tenant, files)
    assert summary | {"seconds": 0} == {
        "rows": ROWS,
        "loaded": ROWS,
        "already_loaded": 0,
        "rejected": 0,
        "seconds": 0,
        "reject_file": None,
    }
    made = ledger(tenant, files)
    assert (made.name, made.metadata["source"]) == ("Small", "test")
    with tenant.client() as client:
        accounts = {a.external_id: a for a in client.ledger_accounts.list(ledger_id=made.id)}
        transaction = next(
            iter(client.ledger_transactions.list(ledger_id=made.id, external_id="t/7"))
        )
    assert set(accounts) == {"cash", *(f"customer:Žofie {n}" for n in range(7))}
    expected = sum((n * 100 + n % 100) * (1 if n % 3 else -1) for n in range(ROWS) if n % 7 == 2)
    customer = accounts["customer:Žofie 2"]
    assert customer.balances.posted_balance.amount == expected
    assert customer.description == "Customer Žofie 2"
    assert transaction.description == 'quoted "7", ř'
    # Midnight in Prague, in summer.
    assert transaction.effective_at.isoformat() == "2024-06-30T22:00:00+00:00"


def test_repeating_a_load_does_nothing(tenant: Any, files: Files) -> None:
    load(tenant, files)
    for more in ((), ("--no-resume",), ("--no-resume", "--concurrency", "3")):
        again = load(tenant, files, *more)
        assert (again["loaded"], again["already_loaded"]) == (0, ROWS)
    files.write([row(number) for number in range(ROWS + 5)])
    assert load(tenant, files)["loaded"] == 5
    assert tenant.verify()["ok"]


def test_what_was_archived_is_not_loaded_again(tenant: Any, files: Files) -> None:
    mapping = files.mapping.read_text()
    files.mapping.write_text(mapping.replace('  description: "{note}"', "  status: pending"))
    files.write([row(number) for number in range(20)])
    load(tenant, files)
    with tenant.client() as client:
        made = ledger(tenant, files).id
        listed = client.ledger_transactions.list(ledger_id=made)
        ids = {each.external_id: each.id for each in listed}
        for external_id in ("t/3", "t/19"):
            client.ledger_transactions.update(ids[external_id], status="archived")
    # Another API key: the first one's idempotency keys are as those of a load of long ago.
    key = json.loads(tenant.platform.run("keys", "create", tenant.slug, "--json").stdout)["api_key"]
    arguments = tenant.load_arguments(files.mapping, files.rows)
    resumed = tenant.platform.run(*arguments, CLOISTER_API_KEY=key)
    assert "Going on after line 21" in resumed.stderr
    again = json.loads(tenant.platform.run(*arguments, "--no-resume", CLOISTER_API_KEY=key).stdout)
    assert (again["loaded"], again["already_loaded"]) == (0, 20)
    # One that was mended since is another transaction.
    files.write([row(3, amount='"4,00"')])
    mended = tenant.platform.run(*arguments, "--no-resume", CLOISTER_API_KEY=key)
    assert json.loads(mended.stdout)["loaded"] == 1


def test_a_checkpoint_is_not_believed_of_another_file(tenant: Any, files: Files) -> None:
    load(tenant, files)
    files.write([row(number, day="2024-07-02") for number in range(3)])
    changed = load(tenant, files, expected=1)
    assert (changed["rejected"], changed["already_loaded"]) == (3, 0)
    assert all("is there, effective at" in reason for reason in files.reasons().values())


def test_a_checkpoint_is_not_believed_of_a_ledger_that_is_gone(tenant: Any, files: Files) -> None:
    load(tenant, files)
    with tenant.client() as client:
        client.ledgers.delete(ledger(tenant, files).id)
    assert load(tenant, files)["loaded"] == ROWS
    with tenant.client() as client:
        accounts = client.ledger_accounts.list(ledger_id=ledger(tenant, files).id)
        assert len(list(accounts)) == 8


def test_a_mended_row_is_loaded_by_the_next_run(tenant: Any, files: Files) -> None:
    rows = [row(number) for number in range(20)]
    files.write([*rows[:5], row(5, amount='"5,005"'), *rows[6:]])
    first = load(tenant, files, expected=1)
    assert (first["loaded"], first["rejected"]) == (19, 1)
    assert first["reject_file"] == str(files.rejects)
    assert "3 decimals" in files.reasons()["7"]
    # Unmended, it is reported again, by a run that resumes behind it.
    again = load(tenant, files, expected=1)
    assert (again["loaded"], again["already_loaded"], again["rejected"]) == (0, 19, 1)
    assert set(files.reasons()) == {"7"}
    files.write(rows)
    mended = load(tenant, files)
    assert (mended["loaded"], mended["already_loaded"]) == (1, 19)
    assert not files.rejects.exists()


def test_an_account_that_is_there_otherwise_is_a_conflict(tenant: Any, files: Files) -> None:
    load(tenant, files)
    files.mapping.write_text(
        files.mapping.read_text().replace(
            "name: Cash, normal_balance: debit", "name: Cash, normal_balance: credit"
        )
    )
    files.write([row(900), row(901)])
    assert load(tenant, files, expected=1)["rejected"] == 2
    assert "conflict: account 'cash' is debit-normal in EUR" in files.reasons()["2"]


def test_a_refusal_of_the_platform_rejects_its_row_only(tenant: Any, files: Files) -> None:
    files.mapping.write_text(
        files.mapping.read_text().replace(
            "normal_balance: debit, currency: EUR", "normal_balance: debit, currency: JPY"
        )
    )
    files.write([row(1, amount='"5"'), row(2, amount='"0,00"'), row(3, amount='"0"')])
    summary = load(tenant, files, expected=1)
    assert (summary["loaded"], summary["rejected"]) == (1, 2)
    reasons = files.reasons()
    assert "the platform answered 422" in reasons["2"]
    assert "2 decimals, the currency 0" in reasons["3"]


def test_two_loads_at_once_are_one(tenant: Any, files: Files) -> None:
    commands = [
        tenant.platform.begin(
            *tenant.load_arguments(
                files.mapping, files.rows, "--rejects", str(files.rejects) + suffix, "--no-resume"
            ),
            CLOISTER_API_KEY=tenant.api_key,
        )
        for suffix in ("", "2")
    ]
    for command in commands:
        stdout, stderr = command.communicate(timeout=60)
        assert command.returncode == 0, stderr
        assert json.loads(stdout)["rows"] == ROWS
    with tenant.client() as client:
        listed = client.ledger_transactions.list(ledger_id=ledger(tenant, files).id, per_page=100)
        assert len(list(listed)) == ROWS


def test_an_interrupted_load_goes_on_although_the_cell_is_killed(tenant: Any, files: Files) -> None:
    rows = 6_000
    files.write([row(number) for number in range(rows)])
    dataset = files.mapping.read_text().split()[1]
    code, stdout, stderr = tenant.interrupt_load(
        files.mapping, files.rows, dataset, 500, signal.SIGINT
    )
    assert code == 130
    assert "Run the same command again" in stderr
    first = json.loads(stdout)
    assert 500 <= first["rows"] == first["loaded"] < rows
    going_on = tenant.platform.begin(
        *tenant.load_arguments(files.mapping, files.rows), CLOISTER_API_KEY=tenant.api_key
    )
    before = tenant.loaded_lines(dataset)
    until(lambda: tenant.loaded_lines(dataset) > before, "the load goes on")
    tenant.platform.kill_cell(tenant.cell)
    stdout, stderr = going_on.communicate(timeout=60)
    assert going_on.returncode == 0, stderr
    second = json.loads(stdout)
    assert (second["rows"], second["rejected"]) == (rows, 0)
    assert first["loaded"] + second["loaded"] == rows
    assert tenant.verify()["ok"]
    assert tenant.verify()["transactions"] >= rows


def test_what_cannot_begin_says_why(tenant: Any, files: Files) -> None:
    arguments = tenant.load_arguments(files.mapping, files.rows)
    platform = tenant.platform

    def refused(*command: str, code: int = 1, key: str = tenant.api_key) -> str:
        return str(platform.run(*command, expected=code, CLOISTER_API_KEY=key).stderr)

    assert "refuses the credentials" in refused(*arguments, key="ck_wrong")
    nobody = [a if a != "small" else "nobody" for a in arguments]
    assert "there is no tenant 'nobody'" in refused(*nobody)
    assert "no tenant 'nobody'" in refused("verify", "nobody")
    assert "absent.csv cannot be read" in refused(*arguments[:-1], "absent.csv")
    away = refused(*arguments, "--base-url", "http://127.0.0.1:1", "--give-up-after", "1")
    assert "for 1 s" in away
    files.mapping.write_text(files.mapping.read_text().replace("{who}", "{whom}"))
    unknown = refused(*arguments)
    assert f"{files.mapping}:6: {files.rows} has no column 'whom'; did you mean 'who'?" in unknown
    with tenant.client() as client:
        dataset = files.mapping.read_text().split()[1]
        assert list(client.ledgers.list(metadata={"cloister_dataset": dataset})) == []


def test_verify_names_the_account_and_fails(platform: Any, files: Files) -> None:
    tenant = platform.create_tenant("damaged")
    load(tenant, files)
    assert tenant.verify()["ok"]
    made = ledger(tenant, files)
    with tenant.client() as client:
        (account,) = client.ledger_accounts.list(ledger_id=made.id, external_id="cash")
    with psycopg.connect(owner_dsn(platform, tenant.cell), autocommit=True) as connection:
        connection.execute(
            "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1"
            " WHERE tenant_id = %s AND ledger_account_id = %s",
            (tenant.organization_id, account.id),
        )
    report = tenant.verify(expected=1)
    assert not report["ok"]
    assert {d["ledger_account_id"] for d in report["differences"]} == {account.id}
    shown = platform.run("verify", "damaged", expected=1).stdout
    assert account.id in shown
    assert "DIFFERS" in shown


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.02)


def owner_dsn(platform: Any, cell: str) -> str:
    content = (platform.home / "data" / "secrets" / "cells.json").read_bytes()
    return str(next(c["owner_dsn"] for c in json.loads(content)["cells"] if c["name"] == cell))
