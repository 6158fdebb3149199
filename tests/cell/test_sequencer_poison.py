"""Poison: commands that the rules let pass and the database cannot take fail alone.

Method: each kind of poison alone, then one or several among fifty commands of two tenants, written
in one statement and with COPY, with a batch in flight before them; all others succeed, once.
"""

import asyncio
from typing import Any

import pytest
from cell_writing import (
    CREDIT,
    DEBIT,
    Writing,
    all_of,
    draft,
    own_tenant,
    rows,
    transfer,
    write,
)

from cell.batch import Applied, Replayed
from cell.errors import ApiError, Unprocessable
from cell.ledger import commands
from cell.ledger.model import Status, TenantId
from cell.ledger.needs import note_needs

POISONS: dict[str, Any] = {
    "NUL in a description": {"description": "a\0b"},
    "NUL in metadata": {"metadata": {"k": "\0"}},
    "NUL in a key of metadata": {"metadata": {"\0": "v"}},
    "NUL in an external id": {"external_id": "\0"},
    "half a character": {"description": "\ud800"},
    "half a character in metadata": {"metadata": {"k": "\udfff"}},
    "half a character in an external id": {"external_id": "\ud800"},
    "a time beyond 64 bits": {"effective_at_us": 1 << 63},
    "an external id too long to be indexed": {"external_id": "".join(map(chr, range(256, 9000)))},
}


def there(dsn: str) -> list[str]:
    query = "SELECT description FROM ledger_transactions ORDER BY description"
    return [name for (name,) in rows(dsn, query)]


@pytest.mark.parametrize("poison", POISONS)
async def test_poison_alone(
    cell_database: Any, writer: Writing, tenant_id: TenantId, poison: str
) -> None:
    accounts = await writer.accounts(tenant_id, 2)
    with pytest.raises(Unprocessable):
        await writer.apply(tenant_id, transfer(*accounts, **POISONS[poison]), key="k")
    assert rows(cell_database.writer_dsn, "SELECT * FROM ledger_transactions") == []
    # The key is free for a better attempt.
    await writer.apply(tenant_id, transfer(*accounts), key="k")


async def test_a_mistake_of_ours_is_one_commands(
    cell_database: Any, writer: Writing, tenant_id: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = await writer.accounts(tenant_id, 2)

    def mistaken(command: Any, *rest: Any) -> None:
        if getattr(command, "description", None) == "b":
            raise IndexError("of ours")
        note_needs(command, *rest)

    monkeypatch.setattr("cell.prefetch.note_needs", mistaken)
    submissions = [
        writer.apply(tenant_id, transfer(*accounts, description=name), key=name) for name in "abc"
    ]
    outcomes = await asyncio.gather(*submissions, return_exceptions=True)
    assert [type(outcome) is Unprocessable for outcome in outcomes] == [False, True, False]
    assert there(cell_database.writer_dsn) == ["a", "c"]


@pytest.mark.parametrize(
    ("poison", "place"),
    [("NUL in a description", 0), ("NUL in a description", 49), *((name, 17) for name in POISONS)],
)
async def test_one_of_fifty(
    cell_database: Any, tenant_id: TenantId, poison: str, place: int
) -> None:
    dsn = cell_database.writer_dsn
    tenants = [tenant_id, own_tenant(dsn)]
    async with write(dsn) as writer:
        accounts = {each: await writer.accounts(each, 2) for each in tenants}

        async def all_fifty() -> list[Any]:
            submissions = []
            for number in range(50):
                each = tenants[number % 2]
                fields = {"description": f"{number:02}"}
                if number == place:
                    fields |= POISONS[poison]
                command = transfer(*accounts[each], **fields)
                submissions.append(writer.outcome(each, command, key=str(number)))
            return await all_of(*submissions)

        outcomes = await all_fifty()
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, Unprocessable if number == place else Applied), outcome
        again = await all_fifty()
        for number, outcome in enumerate(again):
            assert isinstance(outcome, Unprocessable if number == place else Replayed), outcome
    assert there(dsn) == [f"{number:02}" for number in range(50) if number != place]


async def test_several_of_fifty_and_refusals_among_them(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn = cell_database.writer_dsn
    async with write(dsn, batch_size=20) as writer:
        accounts = await writer.accounts(tenant_id, 2)

        def numbered(number: int) -> Any:
            name = f"{number:02}"
            if number % 7 == 3:
                return transfer(*accounts, description=f"{name}\0")
            if number % 5 == 4:
                unequal = (draft(accounts[0], DEBIT, 1), draft(accounts[1], CREDIT, 2))
                return commands.CreateLedgerTransaction(entries=unequal)
            return transfer(*accounts, description=name)

        outcomes = await all_of(
            *(writer.outcome(tenant_id, numbered(number)) for number in range(50))
        )
        good = [n for n in range(50) if n % 7 != 3 and n % 5 != 4]
        assert [n for n, each in enumerate(outcomes) if isinstance(each, Applied)] == good
        assert all(isinstance(outcome, Applied | Unprocessable) for outcome in outcomes)
        assert writer.sequencer.status.commands_refused == 50 - len(good)
    assert there(dsn) == [f"{number:02}" for number in good]


@pytest.mark.parametrize(
    "command",
    [
        commands.CreateLedger(name="\0"),
        commands.CreateLedger(name="\ud800"),
        commands.CreateApiKey(id="00000000-0000-4000-8000-000000000009", secret_sha256="short"),
        commands.CreateApiKey(id="no uuid", secret_sha256="a" * 64),
        commands.UpdateLedger(id="no uuid"),
        commands.UpdateLedgerTransaction(id="\0"),
        commands.UpdateLedgerTransaction(id="\ud800"),
        commands.UpdateLedgerEntry(id="{}"),
        transfer("no uuid", "00000000-0000-4000-8000-000000000009"),
    ],
    ids=lambda command: ascii(command)[:60],
)
async def test_other_commands(
    writer: Writing, tenant_id: TenantId, command: commands.Command
) -> None:
    """Ids that are none are kept away by the API; the sequencer must not depend on it."""
    good = commands.CreateLedger(name="good")
    outcomes = await all_of(*(writer.outcome(tenant_id, each) for each in (good, command, good)))
    assert [type(outcome) for outcome in outcomes[::2]] == [Applied, Applied]
    assert isinstance(outcomes[1], ApiError), outcomes[1]


@pytest.mark.parametrize(
    "fields",
    [{"currency_exponent": 31}, {"currency_exponent": -1}, {"currency_exponent": 1 << 40}],
    ids=str,
)
async def test_accounts(writer: Writing, tenant_id: TenantId, fields: dict[str, Any]) -> None:
    ledger = await writer.ledger(tenant_id)
    with pytest.raises(Unprocessable):
        await writer.account(tenant_id, ledger, **fields)
    await writer.account(tenant_id, ledger)


@pytest.mark.parametrize("amount", [10**36, -1])
async def test_amounts_beyond_the_limits(
    cell_database: Any, writer: Writing, tenant_id: TenantId, amount: int
) -> None:
    accounts = await writer.accounts(tenant_id, 2)
    with pytest.raises(Unprocessable):
        await writer.apply(tenant_id, transfer(*accounts, amount, Status.POSTED))
    query = "SELECT DISTINCT posted_debits, lock_version FROM ledger_account_balances"
    assert rows(cell_database.writer_dsn, query) == [(0, 0)]


async def test_a_swap_that_only_fails_together(
    cell_database: Any, writer: Writing, tenant_id: TenantId
) -> None:
    """One after another they are right; in one statement the index sees both ids taken at once."""
    accounts = await writer.accounts(tenant_id, 2)
    records = [
        await writer.apply(tenant_id, transfer(*accounts, 1, Status.PENDING, external_id=name))
        for name in ("one", "two")
    ]
    one, two = (record.inserted[0].id for record in records)

    def rename(id: str, external_id: str | None) -> Any:
        return commands.UpdateLedgerTransaction(id=id, external_id=external_id)

    outcomes = await all_of(
        *(
            writer.outcome(tenant_id, command)
            for command in (
                rename(one, None),
                rename(two, "one"),
                rename(one, "two"),
                commands.UpdateLedgerTransaction(id=two, status=Status.ARCHIVED),
                transfer(*accounts, external_id="one"),
            )
        )
    )
    assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
    query = "SELECT external_id FROM ledger_transactions WHERE status <> 'archived' ORDER BY 1"
    assert rows(cell_database.writer_dsn, query) == [("one",), ("two",)]
