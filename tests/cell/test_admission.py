"""The fair queue. Method: small tables, then random operations beside a plain list."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.admission import FairQueue
from cell.errors import NotApplied
from cell.ledger.model import TenantId
from cell.wire import STATUS, Verdict

A, B, C = (TenantId(name) for name in "abc")


def queue_of(items: str, items_max: int = 100, items_per_tenant_max: int = 100) -> FairQueue[Any]:
    """Each letter is an item of the tenant of that name."""
    queue: FairQueue[Any] = FairQueue(
        items_max=items_max, items_per_tenant_max=items_per_tenant_max
    )
    for number, name in enumerate(items):
        queue.put(TenantId(name), (name, number))
    return queue


def names(taken: list[Any]) -> str:
    return "".join(name for name, _ in taken)


@pytest.mark.parametrize(
    ("items", "taken_max", "taken"),
    [
        ("", 5, ""),
        ("a", 0, ""),
        ("a", 5, "a"),
        ("aaaa", 3, "aaa"),
        ("ab", 1, "a"),
        ("aaaaaaaab", 2, "ab"),
        ("aaaaaaaab", 3, "aba"),
        ("aaaaaaaab", 4, "aaba"),
        ("aaabbbccc", 3, "abc"),
        ("aaabbbccc", 6, "aabbcc"),
        ("aaabbbccc", 9, "aaabbbccc"),
        ("cba", 2, "cb"),
    ],
)
def test_a_take_goes_round(items: str, taken_max: int, taken: str) -> None:
    queue = queue_of(items)
    assert names(queue.take(taken_max)) == taken
    assert len(queue) == len(items) - len(taken)


def test_a_tenant_that_sends_much_waits_behind_itself() -> None:
    queue = queue_of("a" * 90 + "b" * 5)
    assert Counter(names(queue.take(10))) == {"a": 5, "b": 5}
    assert Counter(names(queue.take(10))) == {"a": 10}


def test_turns_are_kept_over_takes() -> None:
    """More tenants than a batch holds: nobody is served twice before everybody was once."""
    queue = queue_of("abc" * 4)
    assert [names(queue.take(2)) for _ in range(6)] == ["ab", "ca", "bc", "ab", "ca", "bc"]


def test_first_in_first_out_within_a_tenant() -> None:
    queue = queue_of("ababab")
    taken = queue.take(3) + queue.take(3)
    for tenant in "ab":
        numbers = [number for name, number in taken if name == tenant]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("items", "taken"),
    [
        ([("a", 1000)] * 50 + [("b", 2)] * 3, "a" * 10 + "bbb" + "a" * 10),
        ([("b", 2)] * 3 + [("a", 1000)] * 50, "bbb" + "a" * 10 + "a" * 10),
        ([("a", 50_000), ("b", 1), ("b", 1)], "a"),
        ([("a", 0)] * 30, "a" * 30),
        ([(name, 15_000) for name in "abcd"], "ab"),
    ],
)
def test_heavy_items_leave_room_for_light_ones(items: list[Any], taken: str) -> None:
    queue: FairQueue[Any] = FairQueue(
        items_max=100, items_per_tenant_max=100, weigh=lambda item: item[1]
    )
    for item in items:
        queue.put(TenantId(item[0]), item)
    assert names(queue.take(1000, 20_000)) == taken
    assert len(queue) == len(items) - len(taken)
    rest = queue.take(1000)
    assert len(rest) == len(items) - len(taken), "no bound of weight: all the rest"


@pytest.mark.parametrize(
    ("items", "takes"),
    [
        ("X", ["X"]),
        ("aXa", ["a", "X", "a"]),
        ("Xa", ["X", "a"]),
        ("abXab", ["ab", "X", "ba"]),
        ("aXbb", ["ab", "X", "b"]),
        ("XY", ["X", "Y"]),
        ("aXYb", ["a", "Y", "X", "b"]),
    ],
)
def test_some_items_are_taken_by_themselves(items: str, takes: list[str]) -> None:
    """Capitals are such items, X of tenant a and Y of tenant b."""
    queue: FairQueue[str] = FairQueue(
        items_max=9, items_per_tenant_max=9, is_alone=lambda item: item.isupper()
    )
    for item in items:
        queue.put({"X": A, "Y": B}.get(item, TenantId(item)), item)
    taken = ["".join(queue.take(2)) for _ in takes]
    assert taken == takes and not len(queue)


def test_bounds() -> None:
    queue = queue_of("aab", items_max=5, items_per_tenant_max=2)
    with pytest.raises(NotApplied) as refusal:
        queue.put(A, "x")
    assert refusal.value.verdict is Verdict.OVERLOADED
    assert (refusal.value.status, refusal.value.retryable) == (STATUS[Verdict.OVERLOADED], True)
    queue.put(B, "x")
    queue.put(C, "x")
    with pytest.raises(NotApplied, match="cell's queue"):
        queue.put(C, "x")
    assert len(queue) == 5
    queue.take(2)
    queue.put(A, "x")


def test_a_refused_item_leaves_no_turn() -> None:
    queue = queue_of("a", items_max=1)
    with pytest.raises(NotApplied):
        queue.put(B, "x")
    assert names(queue.take(5)) == "a"
    assert queue.take(5) == []


def test_remove() -> None:
    queue = queue_of("aabbc")
    removed = queue.remove(lambda item: item[0] == "b" or item[1] == 0)
    assert sorted(removed) == [("a", 0), ("b", 2), ("b", 3)]
    assert len(queue) == 2
    assert names(queue.take(5)) == "ac"
    assert queue.remove(lambda item: True) == []


async def test_whoever_waits_for_items_is_woken_by_them_or_by_name() -> None:
    queue = queue_of("")
    for cause in (queue.wake, lambda: queue.put(A, "z")):
        waiting = asyncio.create_task(queue.reach(3))
        await asyncio.sleep(0)
        for item in "xy"[len(queue) :]:
            queue.put(A, item)
        await asyncio.sleep(0)
        assert not waiting.done()
        cause()
        async with asyncio.timeout(60):
            await waiting
    await queue.reach(3)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.just("take"), st.integers(0, 6)),
        st.tuples(st.just("remove"), st.sampled_from("abc")),
    ),
    max_size=60,
)


@given(operations, st.integers(1, 12), st.integers(1, 6))
def test_beside_a_list(steps: list[Any], items_max: int, items_per_tenant_max: int) -> None:
    queue: FairQueue[Any] = FairQueue(
        items_max=items_max, items_per_tenant_max=items_per_tenant_max
    )
    plain: list[tuple[str, int]] = []
    for number, (step, argument) in enumerate(steps):
        waiting = Counter(name for name, _ in plain)
        if step == "put":
            is_full = len(plain) >= items_max or waiting[argument] >= items_per_tenant_max
            try:
                queue.put(TenantId(argument), (argument, number))
            except NotApplied:
                assert is_full
            else:
                assert not is_full
                plain.append((argument, number))
        elif step == "take":
            taken = queue.take(argument)
            assert len(taken) == min(argument, len(plain))
            for name in waiting:
                of_tenant = [item for item in plain if item[0] == name]
                mine = [item for item in taken if item[0] == name]
                assert mine == of_tenant[: len(mine)]
                # Who got less than another has nothing left, or its turn comes first next time.
                if len(mine) < len(of_tenant):
                    most = max(Counter(other for other, _ in taken).values(), default=0)
                    assert len(mine) >= most - 1
            plain = [item for item in plain if item not in taken]
        else:
            removed = queue.remove(lambda item, name=argument: item[0] == name)
            assert removed == [item for item in plain if item[0] == argument]
            plain = [item for item in plain if item[0] != argument]
        assert len(queue) == len(plain)
