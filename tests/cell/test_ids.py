"""Ids. Method: draws under clocks of every kind, and the layout read back bit by bit."""

import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.ids import IdSource, derive_id, first_id

NOW_US = 1_700_000_000_123_456


def test_the_layout() -> None:
    source = IdSource()
    first, second = uuid.UUID(source.draw(NOW_US)), uuid.UUID(source.draw(NOW_US + 1))
    for us, id in ((456, first), (457, second)):
        assert (id.version, id.variant) == (7, uuid.RFC_4122)
        assert id.int >> 80 == NOW_US // 1000
        assert (id.int >> 64) & 0xFFF == us
        assert (id.int >> 48) & 0xFFF == 0, "the shard number"
    assert first.node != second.node


@given(st.lists(st.integers(NOW_US - 10_000, NOW_US + 10_000), min_size=2, unique=True))
def test_they_are_in_the_order_of_their_times(times_us: list[int]) -> None:
    """Whatever was drawn before, and by whom: a tenant may have come from another cell."""
    ids = [IdSource().draw(at_us) for at_us in sorted(times_us)]
    assert all(a < b for a, b in pairwise(ids))
    assert all(len(id) == 36 and id == str(uuid.UUID(id)) for id in ids)


def test_ids_of_one_microsecond_differ() -> None:
    source = IdSource()
    assert len({source.draw(NOW_US) for _ in range(10_000)}) == 10_000


def test_derived_ids_are_the_bases_neighbours() -> None:
    base = IdSource().draw(NOW_US)
    assert derive_id(base, 0) == base
    derived = [derive_id(base, ordinal) for ordinal in range(1001)]
    assert len(set(derived)) == 1001
    assert {id[:24] for id in derived} == {base[:24]}


@pytest.mark.parametrize("random", [bytes, lambda count: b"\xff" * count], ids=["zeros", "ones"])
def test_entries_keep_their_order_at_both_ends_of_the_random_part(random: object) -> None:
    """Entries are read back in the order of their ids: it has to be that of the request."""
    base = IdSource(random_bytes=random).draw(NOW_US)  # type: ignore[arg-type]
    derived = [derive_id(base, ordinal) for ordinal in range(1001)]
    assert derived == sorted(derived)


@pytest.mark.parametrize("at_us", [0, 1_704_164_645_678_901, 253_402_300_799_999_999])
def test_first_id_is_the_least_of_its_microsecond(at_us: int) -> None:
    for random in (bytes, lambda count: b"\xff" * count):
        assert first_id(at_us) <= IdSource(random).draw(at_us) < first_id(at_us + 1)
    assert first_id(at_us - 1_000_000) <= first_id(at_us)
