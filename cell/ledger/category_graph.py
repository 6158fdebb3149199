"""The graph of categories: which rows make it, how it is walked, what may be put where (pure).

A category holds accounts (`CategoryMember`) and categories (`CategoryNesting`); an edge counts
while it and the categories at its ends are live. The graph has no cycles and at most LEVEL_MAX + 1
categories in a chain; all in it are of one ledger, currency and exponent. Only upwards is it
walked here, where it is narrow: what is below a category is asked of the database.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from cell.errors import NotFound, Unprocessable
from cell.ids import derive_id
from cell.ledger.model import (
    CategoryMember,
    CategoryNesting,
    LedgerAccount,
    LedgerAccountCategory,
    Stamp,
)
from cell.ledger.needs import Needs, Relation

if TYPE_CHECKING:
    from cell.ledger.rules import State

LEVEL_MAX: Final = 4
"""The root of a graph is level 0."""

MEMBERSHIPS_MAX: Final = 1000
"""Categories an account may be in directly: all of them are read when one is added."""

PARENTS_MAX: Final = 100
"""Categories a category may be under directly: all of them are read, with those above them."""

MEMBERSHIPS: Final = Relation(CategoryMember, by="ledger_account_id")
PARENTS: Final = Relation(CategoryNesting, by="sub_category_id")
BY_EXTERNAL_ID: Final = Relation(LedgerAccountCategory, by="external_id", is_text=True)

_IDS: Final = "ledger_account_category_ids"


def live_category(state: "State", id: str, parameter: str | None = None) -> LedgerAccountCategory:
    """The category, unless it is unknown or discarded; its ledger is the caller's to judge."""
    category = state.row(LedgerAccountCategory, id)
    if category is None or category.discarded_at_us is not None:
        raise NotFound(f"no ledger account category {id}", parameter)
    return category


def require_fit(
    category: LedgerAccountCategory, item: LedgerAccount | LedgerAccountCategory, parameter: str
) -> None:
    """What is in a category is of its ledger, currency and exponent."""
    if item.ledger_id != category.ledger_id:
        raise Unprocessable(
            f"ledger account category {category.id} belongs to another ledger", parameter
        )
    if (item.currency, item.currency_exponent) != (category.currency, category.currency_exponent):
        raise Unprocessable(
            f"ledger account category {category.id} is in {category.currency} with exponent "
            f"{category.currency_exponent}, not {item.currency} with {item.currency_exponent}",
            parameter,
        )


def require_room(places: int, places_max: int, parameter: str) -> None:
    if places > places_max:
        raise Unprocessable(f"it would be directly in more than {places_max} categories", parameter)


def levels_above(state: "State", category_ids: Iterable[str]) -> list[set[str]]:
    """These categories, then those they are directly under, and so on up to the roots."""
    levels = [set(category_ids)]
    while levels[-1]:
        assert len(levels) <= LEVEL_MAX + 2, "more levels than any rule has let through"
        levels.append(_parents(state, levels[-1]))
    return levels[:-1]


def note_levels_above(state: "State", category_ids: Iterable[str], needs: Needs) -> None:
    """Name what a walk upwards from these would meet, as far as it can be seen from here."""
    level = set(category_ids)
    for _ in range(LEVEL_MAX + 1):
        for id in level:
            needs.relation(PARENTS, state.tenant_id, id)
        try:
            nestings = _nestings(state, level)
        except KeyError:
            # Named only now: the next round sees further.
            return
        for nesting in nestings:
            needs.row(LedgerAccountCategory, state.tenant_id, nesting.category_id)
        level = _parents(state, level)


def _parents(state: "State", level: Iterable[str]) -> set[str]:
    found = set()
    for nesting in _nestings(state, level):
        parent = state.row(LedgerAccountCategory, nesting.category_id)
        if parent is not None and parent.discarded_at_us is None:
            found.add(parent.id)
    return found


def _nestings(state: "State", level: Iterable[str]) -> Sequence[CategoryNesting]:
    return tuple(chain.from_iterable(state.related(PARENTS, id) for id in level))


def require_levels(levels: int, parameter: str) -> None:
    """`levels` counts the categories of the longest chain there would be."""
    if levels > LEVEL_MAX + 1:
        raise Unprocessable(
            f"categories nest {LEVEL_MAX} levels deep below a root; this would make {levels - 1}",
            parameter,
        )


def memberships_of_new(
    state: "State", account: LedgerAccount, category_ids: Sequence[str], stamp: Stamp
) -> tuple[CategoryMember, ...]:
    """The rows that put a new account into these categories, each once."""
    for id in category_ids:
        require_fit(live_category(state, id, _IDS), account, _IDS)
    return tuple(
        CategoryMember(
            tenant_id=state.tenant_id,
            id=derive_id(stamp.id_base, ordinal),
            category_id=id,
            ledger_account_id=account.id,
            created_at_us=stamp.at_us,
            discarded_at_us=None,
            seq=stamp.seq,
        )
        for ordinal, id in enumerate(dict.fromkeys(category_ids), 1)
    )


def nestings_of_new(
    state: "State", category: LedgerAccountCategory, category_ids: Sequence[str], stamp: Stamp
) -> tuple[CategoryNesting, ...]:
    """The rows that put a new category under these categories, each once."""
    for id in category_ids:
        require_fit(live_category(state, id, _IDS), category, _IDS)
    require_levels(len(levels_above(state, category_ids)) + 1, _IDS)
    return tuple(
        CategoryNesting(
            tenant_id=state.tenant_id,
            id=derive_id(stamp.id_base, ordinal),
            category_id=id,
            sub_category_id=category.id,
            created_at_us=stamp.at_us,
            discarded_at_us=None,
            seq=stamp.seq,
        )
        for ordinal, id in enumerate(dict.fromkeys(category_ids), 1)
    )
