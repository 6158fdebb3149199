"""Method: a real Postgres, rows and journal written by the real sequencer; then one thing at a time
is corrupted as superuser, and the verification must name exactly that."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cell.batch import Applied, Idempotency
from cell.journal import decode_body
from cell.ledger.commands import (
    Command,
    CreateApiKey,
    CreateLedger,
    CreateLedgerAccount,
    CreateLedgerTransaction,
    EntryDraft,
    PartiallyPostLedgerTransaction,
    ReverseLedgerTransaction,
    UpdateLedgerTransaction,
)
from cell.ledger.model import Direction, Status, TenantId
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits
from cell.store import Store
from control_plane.errors import CellUnavailable
from control_plane.verify.errors import VerificationStopped
from control_plane.verify.report import DIFFERENCES_MAX, Difference, VerificationReport
from control_plane.verify.verification import Verification

TENANT = TenantId("0190aaaa-0000-7000-8000-000000000001")
NEIGHBOUR = TenantId("0190aaaa-0000-7000-8000-000000000002")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A tenant with every kind of row, and where some of them are."""

    superuser_dsn: str
    auditor_dsn: str
    cash: str
    alice: str
    posted: str
    """A posted transaction of 1000 from cash to alice."""
    pending: str
    neighbour_account: str

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            done = connection.execute(sql.SQL(statement), values)  # type: ignore[arg-type]
            assert done.rowcount != 0, "the corruption touched nothing"

    def value(self, statement: str, *values: object) -> Any:
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            row = connection.execute(sql.SQL(statement), values).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row[0]

    def verify(self, tenant_id: TenantId = TENANT) -> VerificationReport:
        return Verification(
            self.auditor_dsn, tenant_id=tenant_id, tenant="acme", cell="cell-a"
        ).run()

    def differences(self) -> dict[str, list[Difference]]:
        report = self.verify()
        assert report.ok == (not report.differences)
        by_check: dict[str, list[Difference]] = {}
        for difference in report.differences:
            by_check.setdefault(difference.check, []).append(difference)
        return by_check


class Writer:
    """Sends commands of one tenant through the sequencer, each in a batch of its own."""

    def __init__(self, sequencer: Sequencer, tenant_id: TenantId) -> None:
        self.sequencer = sequencer
        self.tenant_id = tenant_id
        self.count = 0

    async def apply(self, command: Command) -> str:
        """The id of the main row."""
        self.count += 1
        key = Idempotency(api_key_id="0190aaaa-0000-7000-8000-0000000000aa", key=f"k{self.count}")
        applied = await self.sequencer.submit(self.tenant_id, command, key)
        assert isinstance(applied, Applied)
        main: Any = (applied.record.inserted or applied.record.updated)[0]
        return str(main.id)

    async def account(self, ledger: str, name: str, normal: Direction) -> str:
        return await self.apply(
            CreateLedgerAccount(
                ledger_id=ledger,
                name=name,
                normal_balance=normal,
                currency="CZK",
                currency_exponent=2,
                external_id=f'{name} "ř\\"',
                metadata={"name": name},
            )
        )

    async def transfer(self, debit: str, credit: str, amount: int, status: Status) -> str:
        return await self.apply(
            CreateLedgerTransaction(entries=_entries(debit, credit, amount), status=status)
        )


def _entries(debit: str, credit: str, amount: int) -> tuple[EntryDraft, ...]:
    return (
        EntryDraft(ledger_account_id=debit, direction=Direction.DEBIT, amount=amount),
        EntryDraft(ledger_account_id=credit, direction=Direction.CREDIT, amount=amount),
    )


async def write(database: Any) -> Written:
    """A history with every status, an edit, and a second tenant."""
    with psycopg.connect(database.writer_dsn, autocommit=True) as connection:
        for tenant_id in (TENANT, NEIGHBOUR):
            connection.execute(
                "INSERT INTO tenant_heads (tenant_id, state, epoch) VALUES (%s, 'owned', 1)",
                (tenant_id,),
            )
    sequencer = Sequencer(Store(database.writer_dsn), SequencerLimits())
    await sequencer.open()
    running = asyncio.create_task(sequencer.run())
    try:
        tenant, neighbour = Writer(sequencer, TENANT), Writer(sequencer, NEIGHBOUR)
        await tenant.apply(
            CreateApiKey(id="0190aaaa-0000-7000-8000-0000000000aa", secret_sha256="ab" * 32)
        )
        ledger = await tenant.apply(CreateLedger(name="main", metadata={"a": "b"}))
        cash = await tenant.account(ledger, "cash", Direction.DEBIT)
        alice = await tenant.account(ledger, "alice", Direction.CREDIT)
        posted = await tenant.transfer(cash, alice, 1000, Status.POSTED)
        await tenant.transfer(cash, alice, 0, Status.POSTED)
        await tenant.transfer(alice, cash, 10**36 - 1, Status.ARCHIVED)
        pending = await tenant.transfer(alice, cash, 300, Status.PENDING)
        await tenant.apply(UpdateLedgerTransaction(id=pending, entries=_entries(alice, cash, 250)))
        for status in (Status.POSTED, Status.ARCHIVED):
            moved = await tenant.transfer(cash, alice, 70, Status.PENDING)
            await tenant.apply(UpdateLedgerTransaction(id=moved, status=status))
        await tenant.apply(UpdateLedgerTransaction(id=posted, metadata={"k": "v"}))
        # A reversal of which a part is posted and the rest archived.
        undone = await tenant.transfer(cash, alice, 9, Status.POSTED)
        reversal = await tenant.apply(ReverseLedgerTransaction(id=undone, status=Status.PENDING))
        part = PartiallyPostLedgerTransaction(id=reversal, entries=_entries(alice, cash, 4))
        await tenant.apply(part)
        await tenant.apply(UpdateLedgerTransaction(id=reversal, status=Status.ARCHIVED))
        other = await neighbour.apply(CreateLedger(name="main"))
        neighbour_account = await neighbour.account(other, "bob", Direction.CREDIT)
        for _ in range(3):
            await asyncio.gather(
                *(tenant.transfer(cash, alice, 5, Status.POSTED) for _ in range(5))
            )
    finally:
        sequencer.stop()
        await running
    return Written(
        superuser_dsn=database.superuser_dsn,
        auditor_dsn=database.auditor_dsn,
        cash=cash,
        alice=alice,
        posted=posted,
        pending=pending,
        neighbour_account=neighbour_account,
    )


@pytest.fixture
async def written(cell_database: Any) -> Written:
    return await write(cell_database)


def test_a_sound_tenant_has_no_differences(written: Written) -> None:
    report = written.verify()
    assert report.differences == ()
    assert report.ok
    assert (report.tenant, report.cell) == ("acme", "cell-a")
    assert report.accounts == 2
    assert report.transactions == 24
    assert report.last_seq == written.value(
        "SELECT last_seq FROM tenant_heads WHERE tenant_id = %s", TENANT
    )
    assert report.segments >= 14
    assert written.verify(NEIGHBOUR).ok


Corruption = Callable[[Written], None]


def run(statement: str) -> Corruption:
    def corrupt(written: Written) -> None:
        names = {name: getattr(written, name) for name in ("cash", "alice", "posted", "pending")}
        written.execute(statement.format(tenant=TENANT, **names))

    return corrupt


ENTRY = "tenant_id = '{tenant}' AND ledger_transaction_id = '{posted}' AND direction = 'credit'"

CORRUPTIONS: list[tuple[str, Corruption, set[str], str | None]] = [
    (
        "a posted balance",
        run(
            "UPDATE ledger_account_balances SET posted_credits = posted_credits + 1"
            " WHERE tenant_id = '{tenant}' AND ledger_account_id = '{alice}'"
        ),
        {"balances_of_entries", "journal_of_ledger_account_balances"},
        "alice",
    ),
    (
        "a lock version",
        run(
            "UPDATE ledger_account_balances SET lock_version = lock_version + 1"
            " WHERE tenant_id = '{tenant}' AND ledger_account_id = '{alice}'"
        ),
        {"lock_versions", "journal_of_ledger_account_balances"},
        "alice",
    ),
    (
        "a row of balances",
        run("DELETE FROM ledger_account_balances WHERE ledger_account_id = '{alice}'"),
        {"balances_of_entries", "journal_of_ledger_account_balances"},
        "alice",
    ),
    (
        "an entry's amount",
        run(f"UPDATE ledger_entries SET amount = amount + 1 WHERE {ENTRY}"),
        {
            "balances_of_entries",
            "resulting_balances",
            "ledger_sums",
            "transaction_sums",
            "journal_of_ledger_entries",
        },
        "alice",
    ),
    (
        "both amounts of a transaction",
        run(
            "UPDATE ledger_entries SET amount = amount + 1"
            " WHERE tenant_id = '{tenant}' AND ledger_transaction_id = '{posted}'"
        ),
        {"balances_of_entries", "resulting_balances", "journal_of_ledger_entries"},
        "alice",
    ),
    (
        "an entry's resulting balance",
        run(
            "UPDATE ledger_entries SET resulting_posted_credits = resulting_posted_credits + 1"
            f" WHERE {ENTRY}"
        ),
        {"resulting_balances", "journal_of_ledger_entries"},
        "alice",
    ),
    (
        "an entry moved to a stranger's account",
        run(f"UPDATE ledger_entries SET ledger_account_id = gen_random_uuid() WHERE {ENTRY}"),
        {
            "balances_of_entries",
            "ledger_sums",
            "lock_versions",
            "belonging",
            "resulting_balances",
            "journal_of_ledger_entries",
        },
        "alice",
    ),
    (
        "a deleted transaction's entries",
        run(
            "DELETE FROM ledger_entries"
            " WHERE tenant_id = '{tenant}' AND ledger_transaction_id = '{posted}'"
        ),
        {
            "balances_of_entries",
            "lock_versions",
            "resulting_balances",
            "belonging",
            "journal_of_ledger_entries",
        },
        "alice",
    ),
    (
        "a transaction's status",
        run(
            "UPDATE ledger_transactions SET status = 'archived', posted_at_us = NULL"
            " WHERE tenant_id = '{tenant}' AND id = '{posted}'"
        ),
        {"belonging", "journal_of_ledger_transactions"},
        "alice",
    ),
    (
        "a transaction's metadata",
        run(
            "UPDATE ledger_transactions SET metadata = '{{}}'"
            " WHERE tenant_id = '{tenant}' AND id = '{posted}'"
        ),
        {"journal_of_ledger_transactions"},
        "alice",
    ),
    (
        "a transaction nobody wrote",
        run(
            "INSERT INTO ledger_transactions SELECT (jsonb_populate_record(t, jsonb_build_object("
            " 'id', gen_random_uuid()))).* FROM ledger_transactions t"
            " WHERE tenant_id = '{tenant}' AND id = '{posted}'"
        ),
        {"belonging", "journal_of_ledger_transactions"},
        None,
    ),
    (
        "an account's name",
        run("UPDATE ledger_accounts SET name = 'mallory' WHERE id = '{alice}'"),
        {"journal_of_ledger_accounts"},
        "alice",
    ),
    (
        "an API key's hash",
        run("UPDATE api_keys SET secret_sha256 = repeat('cd', 32) WHERE tenant_id = '{tenant}'"),
        {"journal_of_api_keys"},
        None,
    ),
    (
        "a ledger's name",
        run("UPDATE ledgers SET name = 'other' WHERE tenant_id = '{tenant}'"),
        {"journal_of_ledgers"},
        None,
    ),
    (
        "an idempotency key's sequence",
        run(
            "UPDATE idempotency_keys SET seq = seq + 1000000"
            " WHERE tenant_id = '{tenant}' AND seq = 4"
        ),
        {"idempotency_keys"},
        None,
    ),
    (
        "a segment's hash",
        run("UPDATE journal SET hash = sha256('x') WHERE tenant_id = '{tenant}' AND first_seq = 4"),
        {"journal_chain"},
        None,
    ),
    (
        "a segment's previous hash",
        run(
            "UPDATE journal SET prev_hash = sha256('x')"
            " WHERE tenant_id = '{tenant}' AND first_seq = 1"
        ),
        {"journal_chain"},
        None,
    ),
    (
        "a segment's epoch",
        run("UPDATE journal SET epoch = 2 WHERE tenant_id = '{tenant}' AND first_seq = 4"),
        {"journal_place"},
        None,
    ),
    (
        "a truncated body",
        run(
            "UPDATE journal SET body = substr(body, 1, 20)"
            " WHERE tenant_id = '{tenant}' AND first_seq = 5"
        ),
        {"journal_chain", "journal_place", "journal_images"},
        None,
    ),
    (
        "a missing segment",
        run("DELETE FROM journal WHERE tenant_id = '{tenant}' AND first_seq = 5"),
        {"journal_chain", "journal_images"},
        None,
    ),
    (
        "the last segment",
        run(
            "DELETE FROM journal WHERE tenant_id = '{tenant}' AND last_seq ="
            " (SELECT last_seq FROM tenant_heads WHERE tenant_id = '{tenant}')"
        ),
        {"journal_chain", "journal_images"},
        None,
    ),
    (
        "the head's hash",
        run("UPDATE tenant_heads SET last_hash = sha256('x') WHERE tenant_id = '{tenant}'"),
        {"journal_chain"},
        None,
    ),
    (
        "the head's time",
        run("UPDATE tenant_heads SET last_at_us = last_at_us + 1 WHERE tenant_id = '{tenant}'"),
        {"journal_chain"},
        None,
    ),
]


@pytest.mark.parametrize(
    ("corrupt", "checks", "account"),
    [case[1:] for case in CORRUPTIONS],
    ids=[case[0] for case in CORRUPTIONS],
)
def test_a_corruption_is_named(
    written: Written, corrupt: Corruption, checks: set[str], account: str | None
) -> None:
    corrupt(written)
    differences = written.differences()
    assert set(differences) == checks
    if account is not None:
        named = {d.ledger_account_id or "" for found in differences.values() for d in found}
        assert any(getattr(written, account) in accounts for accounts in named)
    # The neighbour in the same tables is not accused.
    assert written.verify(NEIGHBOUR).ok


def test_swapped_bodies_are_found_by_their_own_place(written: Written) -> None:
    bodies = [
        written.value(
            "SELECT body FROM journal WHERE tenant_id = %s AND first_seq = %s", TENANT, at
        )
        for at in (6, 7)
    ]
    for at, body in ((6, bodies[1]), (7, bodies[0])):
        written.execute(
            "UPDATE journal SET body = %s, hash = sha256(prev_hash || %s)"
            " WHERE tenant_id = %s AND first_seq = %s",
            body, body, TENANT, at,
        )  # fmt: skip
    messages = [d.message for d in written.differences()["journal_place"]]
    assert any("segment 6 to 6: the body is of another place" in m for m in messages)
    assert any("the time of sequence 6 is not after" in m for m in messages)


def test_a_rewritten_history_with_a_sound_chain_is_found_by_the_rows(written: Written) -> None:
    """Whoever can recompute every hash still cannot make other rows follow from the journal."""
    written.execute(
        "CREATE FUNCTION reseal() RETURNS int LANGUAGE plpgsql AS $$"
        " DECLARE r record; h bytea := sha256(''); n int := 0; BEGIN"
        f" FOR r IN SELECT * FROM journal WHERE tenant_id = '{NEIGHBOUR}' ORDER BY first_seq LOOP"
        "   UPDATE journal SET prev_hash = h, hash = sha256(h || body)"
        "     WHERE tenant_id = r.tenant_id AND first_seq = r.first_seq;"
        "   h := sha256(h || r.body); n := n + 1; END LOOP;"
        f" UPDATE tenant_heads SET last_hash = h WHERE tenant_id = '{NEIGHBOUR}';"
        " RETURN n; END $$"
    )
    other = written.value("SELECT body FROM journal WHERE tenant_id = %s AND first_seq = 2", TENANT)
    written.execute(
        "UPDATE journal SET body = %s WHERE tenant_id = %s AND first_seq = 2", other, NEIGHBOUR
    )
    assert written.value("SELECT reseal()") == 2
    at_us = decode_body(other).records[-1].at_us
    written.execute(
        "UPDATE tenant_heads SET last_at_us = %s WHERE tenant_id = %s", at_us, NEIGHBOUR
    )
    checks = {d.check for d in written.verify(NEIGHBOUR).differences}
    assert "journal_chain" not in checks
    assert {"journal_place", "journal_of_ledger_accounts", "journal_of_ledgers"} <= checks


def test_a_row_of_another_tenant_is_foreign(written: Written) -> None:
    written.execute(
        "UPDATE ledger_accounts SET tenant_id = %s WHERE id = %s", TENANT, written.neighbour_account
    )
    found = written.differences()
    assert set(found) == {"balances_of_entries", "journal_of_ledger_accounts"}
    assert found["journal_of_ledger_accounts"][0].ledger_account_id == written.neighbour_account
    assert not written.verify(NEIGHBOUR).ok


def test_an_unknown_tenant_is_a_difference(written: Written) -> None:
    report = written.verify(TenantId("0190aaaa-0000-7000-8000-00000000ffff"))
    assert [d.check for d in report.differences] == ["head"]


def test_differences_are_bounded_and_say_so(written: Written) -> None:
    written.execute("UPDATE ledger_entries SET seq = seq + 1")
    written.execute("UPDATE ledger_transactions SET version = version + 1")
    written.execute("UPDATE idempotency_keys SET created_at_us = created_at_us + 1")
    report = written.verify()
    assert len(report.differences) <= DIFFERENCES_MAX
    assert any("more of journal_of_ledger_entries" in d.message for d in report.differences)


def test_verification_sees_one_moment(written: Written) -> None:
    """What is committed while it runs is not in it: neither in the journal nor in the tables."""
    reached, gone_on = threading.Event(), threading.Event()

    def pause(progress: object) -> None:
        if not reached.is_set():
            reached.set()
            assert gone_on.wait(10)

    verification = Verification(
        written.auditor_dsn, tenant_id=TENANT, tenant="acme", cell="cell-a", on_progress=pause
    )
    reports: list[VerificationReport] = []
    thread = threading.Thread(target=lambda: reports.append(verification.run()))
    thread.start()
    assert reached.wait(10)
    written.execute("DELETE FROM ledger_entries WHERE tenant_id = %s", TENANT)
    gone_on.set()
    thread.join(20)
    assert reports
    assert reports[0].ok
    assert not written.verify().ok


def test_a_writer_is_never_blocked(written: Written) -> None:
    reached, gone_on = threading.Event(), threading.Event()

    def pause(progress: object) -> None:
        reached.set()
        assert gone_on.wait(10)

    verification = Verification(
        written.auditor_dsn, tenant_id=TENANT, tenant="acme", cell="cell-a", on_progress=pause
    )
    thread = threading.Thread(target=verification.run)
    thread.start()
    assert reached.wait(10)
    try:
        for table in ("ledger_entries", "ledger_account_balances", "journal", "tenant_heads"):
            written.execute(f"SET lock_timeout = '1s'; UPDATE {table} SET tenant_id = tenant_id")
    finally:
        gone_on.set()
        thread.join(20)


def test_stop_ends_a_verification(written: Written) -> None:
    verification = Verification(
        written.auditor_dsn,
        tenant_id=TENANT,
        tenant="acme",
        cell="cell-a",
        on_progress=lambda progress: verification.stop(),
    )
    with pytest.raises(VerificationStopped):
        verification.run()


def test_a_lock_is_not_waited_for_for_ever(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.verify.verification.LOCK_WAIT_MS_MAX", 50)
    verification = Verification(written.auditor_dsn, tenant_id=TENANT, tenant="acme", cell="cell-a")
    with psycopg.connect(written.superuser_dsn) as connection:
        connection.execute("LOCK TABLE ledger_entries IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(CellUnavailable, match="lock timeout"):
            verification.run()


def test_a_database_that_is_away_is_an_error_not_a_difference(written: Written) -> None:
    dsn = written.auditor_dsn.replace("host=", "host=/nowhere")
    with pytest.raises(CellUnavailable, match="cell-a"):
        Verification(dsn, tenant_id=TENANT, tenant="acme", cell="cell-a").run()


def test_bodies_are_read_from_the_real_journal(written: Written) -> None:
    body = decode_body(
        written.value("SELECT body FROM journal WHERE tenant_id = %s AND first_seq = 1", TENANT)
    )
    assert body.tenant_id == TENANT
