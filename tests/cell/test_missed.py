"""Accounts that reads have missed in memory: what brings them there, and what must not.

Method: sequencers on a real database, each new one with an empty memory.
"""

from typing import Any

from cell_writing import own_tenant, transfer, write

from cell.ledger.model import TenantId
from cell.missed import ACCOUNTS_MAX, BROUGHT_MAX, TENANTS_MAX, Missed


async def test_the_next_batch_of_the_tenant_brings_what_was_missed(
    cell_database: Any, tenant_id: TenantId
) -> None:
    dsn, other = cell_database.writer_dsn, own_tenant(cell_database.writer_dsn)
    async with write(dsn) as writer:
        cash, alice, bob = await writer.accounts(tenant_id, 3)
        theirs = await writer.accounts(other, 2)
        await writer.apply(tenant_id, transfer(bob, cash, 5))
    async with write(dsn) as writer:
        sequencer = writer.sequencer
        assert sequencer.memory.account(tenant_id, bob) is None
        sequencer.memory.note_missed(tenant_id, bob)
        await writer.apply(other, transfer(*theirs, 1))
        assert sequencer.memory.account(tenant_id, bob) is None, "another tenant's guard"
        await writer.apply(tenant_id, transfer(cash, alice, 1))
        found = sequencer.memory.account(tenant_id, bob)
        assert found is not None
        assert found[1].posted_debits == 5
        assert sequencer.memory.ledger(tenant_id, found[0].ledger_id) is not None
        await writer.apply(tenant_id, transfer(bob, alice, 2))
        found = sequencer.memory.account(tenant_id, bob)
        assert found is not None
        assert found[1].posted_debits == 7


async def test_what_is_not_there_or_another_tenants_does_no_harm(
    cell_database: Any, tenant_id: TenantId
) -> None:
    other = own_tenant(cell_database.writer_dsn)
    async with write(cell_database.writer_dsn) as writer:
        cash, alice = await writer.accounts(tenant_id, 2)
        (theirs,) = await writer.accounts(other, 1)
        for id in (theirs, "00000000-0000-4000-8000-000000000000"):
            writer.sequencer.memory.note_missed(tenant_id, id)
            await writer.apply(tenant_id, transfer(cash, alice, 1))
            assert writer.sequencer.memory.account(tenant_id, id) is None


def test_what_is_kept_and_brought_is_bounded() -> None:
    missed = Missed()
    tenants = [TenantId(f"t{number}") for number in range(TENANTS_MAX + 1)]
    for tenant_id in tenants:
        for number in range(ACCOUNTS_MAX + 1):
            missed.note(tenant_id, f"a{number}")
    assert missed.take(tenants[:1]) == set(), "the one that has waited longest is forgotten"
    for tenant_id in tenants[1:]:
        first = missed.take([tenant_id])
        assert len(first) == BROUGHT_MAX
        rest = set(first)
        while taken := missed.take([tenant_id]):
            assert not taken & rest
            rest |= taken
        assert len(rest) == ACCOUNTS_MAX
