"""A cell process beside the naive ledger, over random requests of a tenant.

Method: Hypothesis draws seeds for well-aimed commands (`aimed_commands.py`), which are sent over
HTTP one after another, some of them twice with the same idempotency key. The naive ledger, which
adds everything up anew, must refuse what the cell refuses, for the same reason; at the end of a
sequence every account, transaction, entry and version is read and compared in every field, accounts
also as of some of their times and versions, and the tenant is verified as by `cloister verify`. A
failure prints what reproduces it.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
from aimed_commands import Aim
from cell_process import CellProcess
from cell_writing import CREDIT, DEBIT
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec import UNSET
from msgspec.structs import replace
from naive_ledger import NaiveLedger

from cell.errors import NotFound
from cell.ids import derive_id
from cell.ledger import commands
from cell.ledger.model import LedgerEntry, Stamp, Status, TenantId
from cell.resources import (
    ledger_accounts,
    ledger_entries,
    ledger_transaction_versions,
    ledger_transactions,
)
from cell.timestamps import DAY_US
from control_plane.verify.verification import Verification

EXAMPLES = int(os.environ.get("CLOISTER_NAIVE_EXAMPLES", "4"))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOBODY = NaiveLedger(TenantId("00000000-0000-4000-8000-000000000002"))
UNITS = (("USD", 2), ("USD", 2), ("JPY", 0), ("JPY", 0))


class Requests(Aim):
    """Aims at transactions and their entries only."""

    def other_one(self) -> Any:
        return self.entry()

    def external_id(self) -> str | None:
        return super().external_id() or None


class RealCell(RuleBasedStateMachine):
    cell: CellProcess

    def __init__(self) -> None:
        super().__init__()
        access = self.cell.new_tenant()
        self.http = access.http()
        self.naive = NaiveLedger(TenantId(access.organization_id))
        self.count = 0
        self.step(commands.CreateLedger(name="first"))
        ledger = next(iter(self.naive.ledgers))
        for currency, exponent in UNITS:
            for side in (DEBIT, CREDIT):
                self.step(
                    commands.CreateLedgerAccount(
                        ledger_id=ledger,
                        name="n",
                        normal_balance=side,
                        currency=currency,
                        currency_exponent=exponent,
                    )
                )

    @rule(seed=st.integers(0, 1 << 32), is_repeated=st.booleans())
    def something(self, seed: int, is_repeated: bool) -> None:
        for _ in range(6):
            command = Requests(Random(f"{seed} {self.count}"), self.naive, NOBODY).command()
            if getattr(command, "ledgerable_type", UNSET) is not UNSET:
                # The edge takes the two together only.
                linked = None if command.ledgerable_type is None else "l"
                command = replace(command, ledgerable_id=linked)
            self.step(command, is_repeated)

    # --- one step -------------------------------------------------------------------------------

    def step(self, command: Any, is_repeated: bool = False) -> None:
        self.count += 1
        method, path, body = request_of(command)
        headers = {"idempotency-key": f"k{self.count}"}
        answer = self.http.request(method, path, json=body, headers=headers)
        if answer.is_error:
            unused = Stamp(0, 0, "00000000-0000-7000-8000-000000000000")
            expected = self.naive.execute(command, unused)
            assert isinstance(expected, tuple), (command, answer.text)
            status = 404 if expected[0] is NotFound else 422
            assert answer.status_code == status, (command, answer.text)
            assert answer.json()["errors"].get("parameter") == expected[1], (command, answer.text)
            return
        shown = answer.json()
        done = self.naive.execute(command, self.stamp_of(method, shown))
        assert isinstance(done, bool), (command, done)
        if is_repeated and method == "POST":
            again = self.http.post(path, json=body, headers=headers)
            assert (again.status_code, again.content) == (answer.status_code, answer.content)

    def stamp_of(self, method: str, shown: Any) -> Stamp:
        """When the command was applied and what its ids count up from."""
        if method == "POST":
            return Stamp(self.count, microseconds(shown["created_at"]), shown["id"])
        at = shown["updated_at"]
        new = [entry for entry in shown.get("ledger_entries", ()) if entry["created_at"] == at]
        base = derive_id(new[0]["id"], -1) if new else ""
        return Stamp(self.count, microseconds(at), base)

    # --- everything, at the end -----------------------------------------------------------------

    def teardown(self) -> None:
        naive = self.naive
        for id, account in naive.accounts.items():
            expected: Any = ledger_accounts.show((naive.account_row(account), naive.balances(id)))
            assert self.read(f"ledger_accounts/{id}") == plain(expected)
            self.compare_as_of(id)
        for id, transaction in naive.transactions.items():
            live = [naive.entry_row(entry) for entry in transaction.entries]
            row = naive.transaction_row(transaction)
            expected = ledger_transactions.show(row, live, with_balances=False)
            assert self.read(f"ledger_transactions/{id}") == plain(expected)
        shown = {
            id: plain(ledger_entries.show(naive.entry_row(entry), with_balances=True))
            for id, entry in naive.entries.items()
        }
        entries = self.read_all("ledger_entries", show_deleted="true", show_balances="true")
        assert {entry["id"]: entry for entry in entries} == shown
        assert self.read_all("ledger_transaction_versions") == self.versions()
        self.http.close()
        verification = Verification(
            self.cell.environment["CLOISTER_CELL_WRITER_DSN"],
            tenant_id=naive.tenant_id,
            tenant="t",
            cell="c",
        )
        assert verification.run().differences == ()

    def compare_as_of(self, account_id: str) -> None:
        """The account's sums at some of its times and versions, on their days, and from them on."""
        rows = [self.naive.entry_row(entry) for entry in self.naive.entries.values()]
        rows = [row for row in rows if row.ledger_account_id == account_id]
        times = sorted({row.effective_at_us for row in rows})
        live = [row for row in rows if row.discarded_at_us is None]
        for at_us in times[:: len(times) // 4 + 1]:
            dated = [row for row in live if row.effective_at_us <= at_us]
            self.compare_sums(account_id, dated, effective_at=timestamp(at_us))
            day_over_us = at_us - at_us % DAY_US + DAY_US
            dated = [row for row in live if row.effective_at_us < day_over_us]
            self.compare_sums(account_id, dated, as_of_date=timestamp(at_us)[:10])
            dated = [row for row in live if at_us <= row.effective_at_us < times[-1]]
            bounds = {"lower": timestamp(at_us), "upper": timestamp(times[-1])}
            named = {f"effective_at_{side}_bound": text for side, text in bounds.items()}
            self.compare_sums(account_id, dated, **named)
        last = self.naive.balances(account_id).lock_version
        for version in range(0, last + 1, last // 4 + 1):
            there = [
                row
                for row in rows
                if row.lock_version <= version
                and (row.discarded_lock_version is None or row.discarded_lock_version > version)
            ]
            self.compare_sums(account_id, there, as_of_lock_version=str(version))

    def compare_sums(self, account_id: str, rows: list[LedgerEntry], **as_of: str) -> None:
        parameters = {f"balances[{key}]": value for key, value in as_of.items()}
        balances = self.read(f"ledger_accounts/{account_id}", **parameters)["balances"]
        posted = sums(rows, Status.POSTED)
        pending = sums(rows, Status.POSTED, Status.PENDING)
        for name, expected in (("posted_balance", posted), ("pending_balance", pending)):
            found = (balances[name]["debits"], balances[name]["credits"])
            assert found == expected, (account_id, as_of)

    def versions(self) -> list[Any]:
        naive = self.naive
        found = [(naive.versions[id], entries) for id, entries in naive.version_entries.items()]
        found += [(naive.current_version(t, 0), t.entries) for t in naive.transactions.values()]
        found.sort(key=lambda version: version[0].id, reverse=True)
        return [
            plain(
                ledger_transaction_versions.show(
                    (
                        version,
                        [
                            replace(
                                naive.entry_row(entry),
                                metadata=version.entry_metadata.get(entry.id, {}),
                            )
                            for entry in entries
                        ],
                    )
                )
            )
            for version, entries in found
        ]

    def read(self, path: str, **parameters: str) -> Any:
        answer = self.http.get(f"/api/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def read_all(self, path: str, **parameters: str) -> list[Any]:
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.http.get(f"/api/{path}", params={"per_page": 100, **parameters, **cursor})
            assert page.status_code == 200, page.text
            found += page.json()
            if "x-after-cursor" not in page.headers:
                return found
            cursor = {"after_cursor": page.headers["x-after-cursor"]}


def sums(rows: list[LedgerEntry], *statuses: Status) -> tuple[int, int]:
    """Of debits and of credits."""
    return tuple(
        sum(row.amount for row in rows if row.status in statuses and row.direction is direction)
        for direction in (DEBIT, CREDIT)
    )  # type: ignore[return-value]


def plain(view: Any) -> Any:
    return json.loads(msgspec.json.encode(view))


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def timestamp(at_us: int) -> str:
    return (EPOCH + timedelta(microseconds=at_us)).isoformat()


PATHS = {
    "create_ledger": ("POST", "/api/ledgers"),
    "create_ledger_account": ("POST", "/api/ledger_accounts"),
    "create_ledger_transaction": ("POST", "/api/ledger_transactions"),
    "update_ledger_transaction": ("PATCH", "/api/ledger_transactions/{}"),
    "partially_post_ledger_transaction": ("POST", "/api/ledger_transactions/{}/partial_post"),
    "reverse_ledger_transaction": ("POST", "/api/ledger_transactions/{}/reversal"),
    "update_ledger_entry": ("PATCH", "/api/ledger_entries/{}"),
}
NAMES = {
    "archives_on_broken_lock": "archive_on_balance_lock_failure",
    "pending_lock": "pending_balance_amount",
    "posted_lock": "posted_balance_amount",
    "available_lock": "available_balance_amount",
    "shows_resulting_balances": "show_resulting_ledger_account_balances",
}
"""What the API calls a command's field."""


def request_of(command: Any) -> tuple[str, str, Any]:
    """Method, path and body of the request that makes the command."""
    fields = msgspec.to_builtins(command)
    name = fields.pop("command")
    method, path = PATHS[name]
    is_part = name == "partially_post_ledger_transaction"
    if "entries" in fields:
        entries = [body_of(entry) for entry in fields.pop("entries")]
        fields["posted_ledger_entries" if is_part else "ledger_entries"] = entries
    return method, path.format(fields.pop("id", "")), body_of(fields)


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    body = {NAMES.get(name, name): value for name, value in fields.items()}
    at_us = body.pop("effective_at_us", None)
    return body if at_us is None else {**body, "effective_at": timestamp(at_us)}


def test_a_cell_beside_a_naive_ledger(served_cell: CellProcess) -> None:
    machine = type("RealCellServed", (RealCell,), {"cell": served_cell})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=12,
            suppress_health_check=list(HealthCheck),
            # Shrinking what failed takes minutes: add Phase.shrink to look into it.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
