"""Batches decided on top of one in flight give what a serial execution gives.

Method: hundreds of commands that all aim at the same few rows (`aimed_commands.py`) are submitted
at once, in batches small enough that most are decided while another is being written. Each outcome,
refusals included, must be that of `naive_ledger.py` executing the same commands one by one in the
order of submission; in the end so must every row. Poison and cut connections throw decided batches
away in between.
"""

import random
from collections import Counter
from typing import Any

import psycopg
import pytest
from aimed_commands import Aim
from cell_writing import Writing, all_of, own_tenant, rows, transfer, write
from msgspec.structs import replace
from naive_ledger import NaiveLedger
from postgres_proxy import Act, Message, door_to

import cell.sequencer
from cell.batch import Applied
from cell.errors import Unprocessable
from cell.ledger import commands
from cell.ledger.model import Stamp, Status, TenantId
from cell.prefetch import Prefetch
from cell.rows import read_as_model, row_from
from cell.tables import ROW_TABLES

ROUNDS = 3
COMMANDS = 100
"""Per tenant and round."""


@pytest.fixture
def overlaps(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """How many batches were decided on top of one in flight, and how many were not."""
    counted: Counter[bool] = Counter()

    class Counted(Prefetch):
        def __init__(self, connection: Any, cache: Any, in_flight: Any) -> None:
            counted[in_flight is not None] += 1
            super().__init__(connection, cache, in_flight)

    monkeypatch.setattr(cell.sequencer, "Prefetch", Counted)
    return counted


class Books:
    """The same commands in the naive ledger."""

    def __init__(self, tenant_id: TenantId) -> None:
        self.naive = NaiveLedger(tenant_id)
        self.reached: Counter[str] = Counter()

    def compare(self, command: Any, outcome: Any) -> None:
        """Execute the command too, now that it is its turn; the outcome must be the same."""
        if not isinstance(outcome, Applied):
            expected = self.naive.execute(command, Stamp(0, 0, ""))
            assert expected == (type(outcome), outcome.parameter), (command, outcome)
            self.reached["refused"] += 1
            return
        record = outcome.record
        main = (record.inserted or record.updated)[0]
        has_changed = main.seq == record.seq
        expected = self.naive.execute(command, Stamp(record.seq, record.at_us, record.id_base))
        assert expected is has_changed, (command, outcome, expected)
        self.reached["changed" if has_changed else "unchanged"] += 1


async def begin(writer: Writing, books: Books, accounts: int = 6, pending: int = 12) -> None:
    """A ledger, accounts, and pending transactions with external ids, one after another."""
    tenant_id = books.naive.tenant_id

    async def do(command: Any) -> str:
        outcome = await writer.outcome(tenant_id, command)
        books.compare(command, outcome)
        assert isinstance(outcome, Applied)
        return outcome.record.inserted[0].id  # type: ignore[union-attr]

    ledger = await do(commands.CreateLedger(name="Main"))
    aim = Aim(random.Random(0), books.naive, books.naive)
    for _ in range(accounts):
        account = replace(aim.create_account(), ledger_id=ledger, external_id=None)
        await do(replace(account, currency="USD", currency_exponent=2))
    ids = list(books.naive.accounts)
    for number in range(pending):
        pair = (ids[number % len(ids)], ids[(number + 1) % len(ids)])
        name = ("x", "y", "X", "")[number] if number < 4 else None
        await do(transfer(*pair, 5 + number, Status.PENDING, external_id=name))


async def all_at_once(
    writer: Writing, source: random.Random, books: list[Books], poisons: int = 0
) -> None:
    """A round: drawn from what is there now, submitted together, then compared in order."""
    drawn: list[tuple[Books, Any, bool]] = []
    for _ in range(COMMANDS):
        for each in books:
            other = books[1 - books.index(each)] if len(books) > 1 else each
            drawn.append((each, Aim(source, each.naive, other.naive).command(), False))
    for _ in range(poisons):
        each = source.choice(books)
        pair = source.sample(list(each.naive.accounts), 2)
        poisoned = transfer(*pair, description="\0")
        drawn.insert(source.randrange(len(drawn)), (each, poisoned, True))
    outcomes = await all_of(
        *(writer.outcome(each.naive.tenant_id, command) for each, command, _ in drawn)
    )
    for (each, command, is_poison), outcome in zip(drawn, outcomes, strict=True):
        if is_poison:
            assert isinstance(outcome, Unprocessable)
        else:
            each.compare(command, outcome)


def assert_same_rows(dsn: str, naive: NaiveLedger) -> None:
    """Every row of the tenant, in every field."""
    expected: dict[str, list[Any]] = {
        "ledgers": [naive.ledger_row(each) for each in naive.ledgers.values()],
        "ledger_accounts": [naive.account_row(each) for each in naive.accounts.values()],
        "ledger_account_balances": [naive.balances(id) for id in naive.accounts],
        "ledger_transactions": [
            naive.transaction_row(each) for each in naive.transactions.values()
        ],
        "ledger_entries": [naive.entry_row(each) for each in naive.entries.values()],
        "ledger_transaction_versions": list(naive.versions.values()),
        "api_keys": list(naive.keys.values()),
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        read_as_model(connection)  # type: ignore[arg-type]  # registers loaders, on either kind
        for table in ROW_TABLES:
            query = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE tenant_id = %s"
            found = connection.execute(query, (naive.tenant_id,)).fetchall()
            rows = {getattr(row, table.key): row for row in (row_from(table.row, r) for r in found)}
            assert rows == {getattr(row, table.key): row for row in expected.get(table.name, ())}


@pytest.mark.parametrize(("seed", "batch_size"), [(0, 1), (1, 3), (2, 3), (3, 10), (4, 10)])
async def test_conflicts_are_decided_as_one_after_another(
    cell_database: Any, overlaps: Counter[bool], seed: int, batch_size: int
) -> None:
    dsn = cell_database.writer_dsn
    source = random.Random(seed)
    books = [Books(own_tenant(dsn)) for _ in range(2)]
    limits = {"cache_accounts": (4, 50_000)[seed % 2], "interval_s": (0.0, 0.004)[seed // 3]}
    async with write(dsn, batch_size=batch_size, **limits) as writer:
        for each in books:
            await begin(writer, each)
        for _ in range(ROUNDS):
            await all_at_once(writer, source, books)
    for each in books:
        assert_same_rows(cell_database.superuser_dsn, each.naive)
        assert all(each.reached[kind] > 30 for kind in ("changed", "refused")), each.reached
    assert overlaps[True] > 100 // batch_size, overlaps


@pytest.mark.parametrize("seed", range(2))
async def test_with_poison_among_them(
    cell_database: Any, overlaps: Counter[bool], seed: int
) -> None:
    dsn = cell_database.writer_dsn
    source = random.Random(seed)
    books = [Books(own_tenant(dsn)) for _ in range(2)]
    async with write(dsn, batch_size=7) as writer:
        for each in books:
            await begin(writer, each)
        for _ in range(ROUNDS):
            await all_at_once(writer, source, books, poisons=6)
    for each in books:
        assert_same_rows(cell_database.superuser_dsn, each.naive)
    assert overlaps[True] > 10, overlaps


@pytest.mark.parametrize("seed", range(2))
async def test_with_connections_cut(
    cell_database: Any, overlaps: Counter[bool], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cell.sequencer.RECONNECT_PAUSE_S", 0.001)
    monkeypatch.setattr("cell.sequencer.ATTEMPTS_MAX", 100)
    dsn = cell_database.writer_dsn
    source = random.Random(seed)
    books = [Books(own_tenant(dsn)) for _ in range(2)]
    cuts = 0
    async with door_to(dsn) as door, write(door.dsn(dsn), batch_size=7) as writer:
        for each in books:
            await begin(writer, each)

        async def gate(message: Message) -> Act:
            nonlocal cuts
            is_cut = source.random() < 0.004
            cuts += is_cut
            return Act.CUT if is_cut else Act.PASS

        door.gate = gate
        for _ in range(ROUNDS):
            await all_at_once(writer, source, books)
    for each in books:
        assert_same_rows(cell_database.superuser_dsn, each.naive)
    assert cuts > 3
    assert overlaps[True] > 10, overlaps


async def test_external_ids_set_free_by_the_batch_in_flight(
    cell_database: Any, tenant_id: TenantId, overlaps: Counter[bool]
) -> None:
    """Who archives, renames or deletes the holder need not name the id; the next may take it."""
    dsn = cell_database.writer_dsn
    async with write(dsn, batch_size=1) as writer:
        ledger = await writer.ledger(tenant_id)
        cash, alice = await writer.accounts(tenant_id, 2, ledger)
        holders = {}
        for name in ("archived", "renamed", "replaced"):
            pending = transfer(cash, alice, 1, Status.PENDING, external_id=name)
            holders[name] = (await writer.apply(tenant_id, pending)).inserted[0].id
        gone = await writer.account(tenant_id, ledger, external_id="gone")
        renamed = await writer.account(tenant_id, ledger, external_id="other")
        update = commands.UpdateLedgerTransaction
        account = commands.CreateLedgerAccount(
            ledger_id=ledger,
            name="x",
            normal_balance="debit",  # type: ignore[arg-type]  # JSON has the same word
            currency="USD",
            currency_exponent=2,
        )
        outcomes = await all_of(
            *(
                writer.outcome(tenant_id, command)
                for command in (
                    update(id=holders["archived"], status=Status.ARCHIVED),
                    transfer(cash, alice, external_id="archived"),
                    update(id=holders["renamed"], external_id=None),
                    transfer(cash, alice, external_id="renamed"),
                    update(id=holders["replaced"], external_id="something else"),
                    transfer(cash, alice, external_id="replaced"),
                    transfer(cash, alice, external_id="something else"),
                    commands.DeleteLedgerAccount(id=gone),
                    replace(account, external_id="gone"),
                    commands.UpdateLedgerAccount(id=renamed, external_id="another"),
                    replace(account, external_id="other"),
                    replace(account, external_id="another"),
                )
            )
        )
        kinds = [type(outcome) for outcome in outcomes]
        expected = [Applied] * 12
        expected[6] = expected[11] = Unprocessable
        assert kinds == expected, outcomes
    assert overlaps[True] > 6, overlaps


async def test_what_comes_at_once_is_written_in_halves(cell_database: Any) -> None:
    """One half is written while the other is answered; what is few stays together."""
    dsn = cell_database.writer_dsn
    tenant_id = own_tenant(dsn)
    async with write(dsn) as writer:
        accounts = await writer.accounts(tenant_id, 2)
        expected = [(1,), (2,)]
        for count, batches in ((64, [32, 32]), (20, [16, 4]), (16, [16])):
            await all_of(*(writer.outcome(tenant_id, transfer(*accounts)) for _ in range(count)))
            expected += [(size,) for size in batches]
    assert rows(cell_database.superuser_dsn, BATCH_SIZES, tenant_id) == expected


BATCH_SIZES = """
SELECT last_seq - first_seq + 1 FROM journal WHERE tenant_id = %s ORDER BY first_seq
"""
