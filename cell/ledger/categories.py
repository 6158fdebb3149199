"""The rules of ledger account categories (pure): their text, and what is put into them.

Putting something in, in order of precedence:
1. the category, and what is put in, known and live
2. both of one ledger, currency and exponent
3. what is in already stays as it is: nothing is recorded
4. no category under itself, directly or through others
5. no chain of more than five categories (level 4 below a root)
6. the bounds on how many categories a thing is directly in

A discarded category has nothing in it and is in nothing; its members and sub-categories stay what
they are elsewhere. A discarded account leaves all its categories (see `rules`).
"""

from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from cell.errors import NotFound, Unprocessable
from cell.ledger.category_graph import (
    BY_EXTERNAL_ID,
    MEMBERSHIPS,
    MEMBERSHIPS_MAX,
    PARENTS,
    PARENTS_MAX,
    levels_above,
    live_category,
    nestings_of_new,
    note_levels_above,
    require_fit,
    require_levels,
    require_room,
)
from cell.ledger.commands import (
    AddLedgerAccountToCategory,
    CreateLedgerAccountCategory,
    DeleteLedgerAccountCategory,
    NestLedgerAccountCategory,
    RemoveLedgerAccountFromCategory,
    UnnestLedgerAccountCategory,
    UpdateLedgerAccountCategory,
)
from cell.ledger.model import (
    CategoryMember,
    CategoryNesting,
    Effects,
    LedgerAccountCategory,
    Stamp,
    TenantId,
)
from cell.ledger.needs import FURTHER_NEEDS, Needs, Question, note_needs
from cell.ledger.rules import State, apply, live_account, live_ledger, merged_metadata

_SUB: Final = "sub_category_id"
_Membership = AddLedgerAccountToCategory | RemoveLedgerAccountFromCategory
_Nesting = NestLedgerAccountCategory | UnnestLedgerAccountCategory


class LevelsBelow(Question, frozen=True, tag="levels_below"):
    """How many levels are below the category? An int: 0 where nothing is nested under it."""

    category_id: str


@note_needs.register
def _needs_of_new(command: CreateLedgerAccountCategory, tenant_id: TenantId, needs: Needs) -> None:
    needs.ledgers.add((tenant_id, command.ledger_id))
    for id in command.category_ids:
        needs.row(LedgerAccountCategory, tenant_id, id)
    if command.external_id is not None:
        needs.relation(BY_EXTERNAL_ID, tenant_id, command.external_id)


@note_needs.register
def _needs_of_update(
    command: UpdateLedgerAccountCategory, tenant_id: TenantId, needs: Needs
) -> None:
    needs.row(LedgerAccountCategory, tenant_id, command.id)
    if command.external_id is not UNSET and command.external_id is not None:
        needs.relation(BY_EXTERNAL_ID, tenant_id, command.external_id)


@note_needs.register
def _needs_of_delete(
    command: DeleteLedgerAccountCategory, tenant_id: TenantId, needs: Needs
) -> None:
    needs.row(LedgerAccountCategory, tenant_id, command.id)


@note_needs.register(AddLedgerAccountToCategory | RemoveLedgerAccountFromCategory)
def _needs_of_membership(command: _Membership, tenant_id: TenantId, needs: Needs) -> None:
    needs.row(LedgerAccountCategory, tenant_id, command.category_id)
    needs.accounts.add((tenant_id, command.ledger_account_id))
    needs.relation(MEMBERSHIPS, tenant_id, command.ledger_account_id)


@note_needs.register(NestLedgerAccountCategory | UnnestLedgerAccountCategory)
def _needs_of_nesting(command: _Nesting, tenant_id: TenantId, needs: Needs) -> None:
    needs.row(LedgerAccountCategory, tenant_id, command.category_id)
    needs.row(LedgerAccountCategory, tenant_id, command.sub_category_id)
    needs.relation(PARENTS, tenant_id, command.sub_category_id)
    if isinstance(command, NestLedgerAccountCategory):
        needs.questions.add((tenant_id, LevelsBelow(category_id=command.sub_category_id)))


def _note_above_new(command: CreateLedgerAccountCategory, state: State, needs: Needs) -> None:
    note_levels_above(state, command.category_ids, needs)


def _note_ledger(command: UpdateLedgerAccountCategory, state: State, needs: Needs) -> None:
    _note_ledger_of(command.id, state, needs)


def _note_ledger_of(category_id: str, state: State, needs: Needs) -> None:
    category = state.row(LedgerAccountCategory, category_id)
    if category is not None:
        needs.ledgers.add((state.tenant_id, category.ledger_id))


def _note_ledger_and_above(command: _Nesting, state: State, needs: Needs) -> None:
    _note_ledger_of(command.category_id, state, needs)
    if isinstance(command, NestLedgerAccountCategory):
        note_levels_above(state, (command.category_id,), needs)


FURTHER_NEEDS[CreateLedgerAccountCategory] = _note_above_new
FURTHER_NEEDS[UpdateLedgerAccountCategory] = _note_ledger
FURTHER_NEEDS[NestLedgerAccountCategory] = _note_ledger_and_above
FURTHER_NEEDS[UnnestLedgerAccountCategory] = _note_ledger_and_above


@apply.register
def _create(command: CreateLedgerAccountCategory, state: State, stamp: Stamp) -> Effects:
    ledger = live_ledger(state, command.ledger_id)
    category = LedgerAccountCategory(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        ledger_id=ledger.id,
        name=command.name,
        description=command.description,
        normal_balance=command.normal_balance,
        currency=command.currency,
        currency_exponent=command.currency_exponent,
        external_id=command.external_id,
        metadata=command.metadata,
        created_at_us=stamp.at_us,
        updated_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    nestings = nestings_of_new(state, category, command.category_ids, stamp)
    _require_free_external_id(state, category)
    return Effects(inserted=(category, *nestings))


@apply.register
def _update(command: UpdateLedgerAccountCategory, state: State, stamp: Stamp) -> Effects:
    category = _open_category(state, command.id)
    changed = replace(
        category,
        name=category.name if command.name is UNSET else command.name,
        description=category.description if command.description is UNSET else command.description,
        external_id=category.external_id if command.external_id is UNSET else command.external_id,
        metadata=merged_metadata(category.metadata, command.metadata),
    )
    if changed == category:
        return Effects(updated=(category,))
    if changed.external_id != category.external_id:
        _require_free_external_id(state, changed)
    return Effects(updated=(replace(changed, updated_at_us=stamp.at_us, seq=stamp.seq),))


@apply.register
def _delete(command: DeleteLedgerAccountCategory, state: State, stamp: Stamp) -> Effects:
    category = state.row(LedgerAccountCategory, command.id)
    if category is None:
        raise NotFound(f"no ledger account category {command.id}")
    if category.discarded_at_us is not None:
        return Effects(updated=(category,))
    gone = replace(category, discarded_at_us=stamp.at_us, updated_at_us=stamp.at_us, seq=stamp.seq)
    return Effects(updated=(gone,))


@apply.register
def _add_account(command: AddLedgerAccountToCategory, state: State, stamp: Stamp) -> Effects:
    category = live_category(state, command.category_id)
    account = live_account(state, command.ledger_account_id)
    require_fit(category, account, "ledger_account_id")
    present = _member(command, state)
    if present is not None:
        return Effects(updated=(present,))
    places = len(state.related(MEMBERSHIPS, account.id))
    require_room(places + 1, MEMBERSHIPS_MAX, "ledger_account_id")
    member = CategoryMember(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        category_id=category.id,
        ledger_account_id=account.id,
        created_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    return Effects(inserted=(member,))


@apply.register
def _remove_account(
    command: RemoveLedgerAccountFromCategory, state: State, stamp: Stamp
) -> Effects:
    live_category(state, command.category_id)
    live_account(state, command.ledger_account_id)
    member = _member(command, state)
    if member is None:
        raise NotFound(
            f"ledger account {command.ledger_account_id} is not directly in "
            f"ledger account category {command.category_id}"
        )
    return Effects(updated=(replace(member, discarded_at_us=stamp.at_us, seq=stamp.seq),))


def _member(command: _Membership, state: State) -> CategoryMember | None:
    for member in state.related(MEMBERSHIPS, command.ledger_account_id):
        if member.category_id == command.category_id:
            found: CategoryMember = member
            return found
    return None


@apply.register
def _nest(command: NestLedgerAccountCategory, state: State, stamp: Stamp) -> Effects:
    category = _open_category(state, command.category_id)
    sub_category = live_category(state, command.sub_category_id)
    require_fit(category, sub_category, _SUB)
    present = _nesting(command, state)
    if present is not None:
        return Effects(updated=(present,))
    levels = levels_above(state, (category.id,))
    if any(sub_category.id in level for level in levels):
        raise Unprocessable(
            f"ledger account category {sub_category.id} would be under itself", _SUB
        )
    below: int = state.answer(LevelsBelow(category_id=sub_category.id))
    require_levels(len(levels) + 1 + below, _SUB)
    require_room(len(state.related(PARENTS, sub_category.id)) + 1, PARENTS_MAX, _SUB)
    nesting = CategoryNesting(
        tenant_id=state.tenant_id,
        id=stamp.id_base,
        category_id=category.id,
        sub_category_id=sub_category.id,
        created_at_us=stamp.at_us,
        discarded_at_us=None,
        seq=stamp.seq,
    )
    return Effects(inserted=(nesting,))


@apply.register
def _unnest(command: UnnestLedgerAccountCategory, state: State, stamp: Stamp) -> Effects:
    _open_category(state, command.category_id)
    live_category(state, command.sub_category_id)
    nesting = _nesting(command, state)
    if nesting is None:
        raise NotFound(
            f"ledger account category {command.sub_category_id} is not directly under "
            f"{command.category_id}"
        )
    return Effects(updated=(replace(nesting, discarded_at_us=stamp.at_us, seq=stamp.seq),))


def _nesting(command: _Nesting, state: State) -> CategoryNesting | None:
    for nesting in state.related(PARENTS, command.sub_category_id):
        if nesting.category_id == command.category_id:
            found: CategoryNesting = nesting
            return found
    return None


def _open_category(state: State, id: str) -> LedgerAccountCategory:
    """The category, unless it or its ledger is unknown or discarded."""
    category = live_category(state, id)
    ledger = state.ledger(category.ledger_id)
    if ledger is None or ledger.discarded_at_us is not None:
        raise NotFound(f"no ledger account category {id}")
    return category


def _require_free_external_id(state: State, category: LedgerAccountCategory) -> None:
    if category.external_id is None:
        return
    for holder in state.related(BY_EXTERNAL_ID, category.external_id):
        if holder.ledger_id == category.ledger_id and holder.id != category.id:
            raise Unprocessable(
                f"external_id {category.external_id} is taken by another category of the ledger",
                "external_id",
            )
