"""The caches. Method: random operations beside a plain map, and bounds looked at after each."""

from typing import Any

from cell_writing import CREDIT, DEBIT, Writing, draft, transfer
from hypothesis import given
from hypothesis import strategies as st

from cell.ledger import commands
from cell.ledger.model import Status, TenantId
from cell.state import CACHED_ENTRIES_MAX, GenerationCache

operations = st.lists(
    st.tuples(st.sampled_from(("put", "put", "get", "drop", "clear")), st.integers(0, 15)),
    max_size=80,
)


@given(operations, st.integers(0, 12))
def test_it_forgets_but_never_lies(steps: list[tuple[str, int]], entries_max: int) -> None:
    cache: GenerationCache[int, int] = GenerationCache(entries_max)
    plain: dict[int, int] = {}
    for number, (step, key) in enumerate(steps):
        if step == "put":
            cache.put(key, number)
            plain[key] = number
            assert cache.get(key) == number
        elif step == "get":
            assert cache.get(key) in (None, plain.get(key))
        elif step == "drop":
            cache.drop(key)
            plain.pop(key, None)
            assert cache.get(key) is None
        elif key == 0:
            cache.clear()
            plain.clear()
        assert len(cache) <= max(2, entries_max)


def test_what_is_used_stays() -> None:
    cache: GenerationCache[int, int] = GenerationCache(20)
    for number in range(1000):
        cache.put(number, number)
        assert cache.get(number - number % 5) == number - number % 5
        if number % 4 == 0:
            cache.put(-1, -1)
    assert cache.get(-1) == -1


def test_what_is_forgotten_leaves_one_by_one() -> None:
    cache: GenerationCache[int, Live] = GenerationCache(20)
    for number in range(1000):
        before = Live.count
        cache.put(number, Live())
        assert before <= Live.count <= min(20, number + 1)


class Live:
    """Counts how many of it there are."""

    count = 0

    def __init__(self) -> None:
        Live.count += 1

    def __del__(self) -> None:
        Live.count -= 1


async def test_large_transactions_are_not_kept(writer: Writing, tenant_id: TenantId) -> None:
    """Nor is what was kept of one before it grew."""
    cash, alice = await writer.accounts(tenant_id, 2)
    small = (await writer.apply(tenant_id, transfer(cash, alice, 9, Status.PENDING))).inserted[0]
    assert writer.sequencer.memory.transaction(tenant_id, small.id) is not None
    half = CACHED_ENTRIES_MAX // 2
    for pairs, is_kept in ((half, True), (half + 1, False), (1, True)):
        entries: Any = (*[draft(cash, DEBIT)] * pairs, *[draft(alice, CREDIT)] * pairs)
        command = commands.UpdateLedgerTransaction(id=small.id, entries=entries)
        changed = (await writer.apply(tenant_id, command)).updated[0]
        cached = writer.sequencer.memory.transaction(tenant_id, small.id)
        assert (cached is not None) == is_kept
        assert cached is None or cached[0] == changed
