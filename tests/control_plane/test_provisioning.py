"""Creating tenants and keys. Method: a real catalog and small cells; a crash after every step."""

import asyncio
import hashlib
from typing import Any
from uuid import uuid4

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control_plane.app import ControlPlane
from control_plane.catalog import Catalog, KeyState, TenantState
from control_plane.errors import (
    CatalogUnavailable,
    CellRefused,
    CellUnavailable,
    NotFound,
    PlacementRefused,
    RequestMalformed,
    SlugInUse,
    TenantProvisioning,
)
from control_plane.provisioning import check_slug

OPERATOR = "operator"


def fail(method: str, part: str) -> Any:
    """Refuses the requests of this method whose path contains `part`."""

    def refuse(request: Request) -> Response | None:
        matches = request.method == method and part in request.url.path
        return JSONResponse({}, 503) if matches else None

    return refuse


async def test_a_created_tenant_is_at_its_cell_and_routed(
    plane: ControlPlane, small_cell: Any
) -> None:
    new = await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    organization_id = str(new.tenant.organization_id)
    assert new.tenant.first_cell == "cell-a"
    assert small_cell.heads[organization_id]["epoch"] == 1
    key = small_cell.keys[(organization_id, str(new.key_id))]
    assert key == hashlib.sha256(new.secret.encode()).hexdigest()
    assert new.secret.startswith("ck_")
    assert len(new.secret) == 46
    placements = (await plane.catalog.routing_table()).tenants
    assert {tenant: placement.cell for tenant, placement in placements.items()} == {
        organization_id: "cell-a"
    }
    assert new.secret not in repr(new)


async def test_tenants_go_to_the_cells_in_turn(plane: ControlPlane) -> None:
    cells = []
    for slug in ("one", "two", "three"):
        new = await plane.provisioning.create_tenant(slug, None, actor=OPERATOR)
        cells.append(new.tenant.first_cell)
    assert cells == ["cell-a", "cell-b", "cell-a"]


async def test_a_slug_in_use_is_named(plane: ControlPlane) -> None:
    await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    with pytest.raises(SlugInUse, match="tenant 'acme' already"):
        await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)


@pytest.mark.parametrize("slug", ["", "a", "Acme", "1a", "a_b", "a" * 64, "é-tenant", "a b"])
def test_what_is_no_slug_is_refused(slug: str) -> None:
    with pytest.raises(RequestMalformed, match="cannot name a tenant"):
        check_slug(slug)


@pytest.mark.parametrize("part", ["/operator/tenants/", "/keys/"], ids=["head", "key"])
async def test_a_creation_that_died_is_completed_by_repeating_it(
    plane: ControlPlane, small_cell: Any, part: str
) -> None:
    small_cell.refuse = fail("PUT", part)
    with pytest.raises(CellUnavailable):
        await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    half = await plane.catalog.tenant("acme")
    assert half.state is TenantState.PROVISIONING
    assert (await plane.catalog.routing_table()).tenants == {}

    small_cell.refuse = lambda request: None
    # Another tenant makes the other cell the less loaded one; the cell is kept all the same.
    await plane.provisioning.create_tenant("other", "cell-a", actor=OPERATOR)
    new = await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    assert new.tenant.organization_id == half.organization_id
    assert new.tenant.first_cell == "cell-a"
    keys = await plane.provisioning.list_keys("acme")
    states = {key.key_id: key.state for key in keys}
    assert states.pop(new.key_id) is KeyState.ACTIVE
    assert set(states.values()) <= {KeyState.REVOKED}, "keys nobody saw are not valid"
    assert {key for _, key in small_cell.revoked} == {str(key) for key in states}


async def test_a_creation_that_died_before_its_last_step(
    plane: ControlPlane, small_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(plane.catalog), "complete_tenant", die)
    with pytest.raises(KeyboardInterrupt):
        await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    monkeypatch.undo()
    assert len(small_cell.keys) == 1
    new = await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    assert len(small_cell.revoked) == 1
    assert str(new.key_id) not in {key for _, key in small_cell.revoked}


@pytest.mark.parametrize("step", ["complete_tenant", "answer_tenant"])
async def test_a_creation_of_unknown_outcome_is_completed_by_repeating_it(
    plane: ControlPlane, small_cell: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    complete = Catalog.complete_tenant

    async def commit_unheard(*given: Any, **named: Any) -> bool:
        await complete(*given, **named)
        raise CatalogUnavailable

    async def die(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Catalog, step, commit_unheard if step == "complete_tenant" else die)
    for _ in range(2):
        with pytest.raises((CatalogUnavailable, KeyboardInterrupt)):
            await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    monkeypatch.undo()
    placed = await plane.catalog.routing_table()
    new = await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    organization_id = str(new.tenant.organization_id)
    assert placed.tenants == (await plane.catalog.routing_table()).tenants
    assert list(placed.tenants) == [organization_id]
    key = small_cell.keys[(organization_id, str(new.key_id))]
    assert key == hashlib.sha256(new.secret.encode()).hexdigest()
    assert not small_cell.revoked, "any of them may have been shown"
    with pytest.raises(SlugInUse, match="tenant 'acme' already"):
        await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)


async def test_a_creation_whose_caller_has_gone_is_completed_by_repeating_it(
    plane: ControlPlane,
) -> None:
    async def is_gone() -> bool:
        return True

    first = await plane.provisioning.create_tenant(
        "acme", None, actor=OPERATOR, is_caller_gone=is_gone
    )
    second = await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    assert first.tenant.organization_id == second.tenant.organization_id
    with pytest.raises(SlugInUse):
        await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)


async def test_a_key_is_shown_although_the_note_of_that_is_lost(
    plane: ControlPlane, small_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def be_away(*_: object, **__: object) -> bool:
        raise CatalogUnavailable

    monkeypatch.setattr(Catalog, "answer_tenant", be_away)
    new = await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    monkeypatch.undo()
    await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    assert str(new.key_id) not in {key for _, key in small_cell.revoked}


async def test_a_repeated_creation_cannot_change_the_cell(
    plane: ControlPlane, small_cell: Any
) -> None:
    small_cell.refuse = fail("PUT", "/operator/tenants/")
    with pytest.raises(CellUnavailable):
        await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    with pytest.raises(PlacementRefused, match="began on cell-a; repeat it without a cell"):
        await plane.provisioning.create_tenant("acme", "cell-b", actor=OPERATOR)


async def test_created_twice_at_once_there_is_one_tenant_with_one_key(
    plane: ControlPlane, small_cell: Any, other_cell: Any
) -> None:
    results = await asyncio.gather(
        *(plane.provisioning.create_tenant("acme", None, actor=OPERATOR) for _ in range(6)),
        return_exceptions=True,
    )
    created = [result for result in results if not isinstance(result, BaseException)]
    assert len(created) == 1, results
    assert all(isinstance(r, SlugInUse) for r in results if isinstance(r, BaseException))
    valid = {**small_cell.keys, **other_cell.keys}.keys() - small_cell.revoked - other_cell.revoked
    assert [key for _, key in valid] == [str(created[0].key_id)]


async def test_a_cell_that_holds_another_head_refuses(plane: ControlPlane, small_cell: Any) -> None:
    def moved(request: Request) -> Response | None:
        if request.method != "PUT":
            return None
        head = {"organization_id": str(uuid4()), "state": "moved", "epoch": 4, "last_seq": 9}
        return JSONResponse(head)

    small_cell.refuse = moved
    with pytest.raises(CellRefused, match="head of 'acme' that is moved at epoch 4"):
        await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)


async def test_keys_are_created_and_revoked(plane: ControlPlane, small_cell: Any) -> None:
    first = await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    second = await plane.provisioning.create_key("acme", actor=OPERATOR)
    assert first.secret != second.secret
    await plane.provisioning.revoke_key("acme", first.key_id, actor=OPERATOR)
    await plane.provisioning.revoke_key("acme", first.key_id, actor=OPERATOR)
    states = {key.key_id: key.state for key in await plane.provisioning.list_keys("acme")}
    assert states == {first.key_id: KeyState.REVOKED, second.key_id: KeyState.ACTIVE}
    assert small_cell.revoked == {(str(first.tenant.organization_id), str(first.key_id))}


async def test_a_key_is_revoked_only_when_its_cell_says_so(
    plane: ControlPlane, small_cell: Any
) -> None:
    new = await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    small_cell.refuse = fail("DELETE", "/keys/")
    with pytest.raises(CellUnavailable):
        await plane.provisioning.revoke_key("acme", new.key_id, actor=OPERATOR)
    assert [key.state for key in await plane.provisioning.list_keys("acme")] == [KeyState.ACTIVE]


async def test_unknown_tenants_and_keys(plane: ControlPlane) -> None:
    with pytest.raises(NotFound, match="no tenant 'acme'"):
        await plane.provisioning.create_key("acme", actor=OPERATOR)
    await plane.provisioning.create_tenant("acme", None, actor=OPERATOR)
    with pytest.raises(NotFound, match="has no key"):
        await plane.provisioning.revoke_key("acme", uuid4(), actor=OPERATOR)


async def test_a_half_created_tenant_has_no_further_keys(
    plane: ControlPlane, small_cell: Any
) -> None:
    small_cell.refuse = fail("PUT", "/operator/tenants/")
    with pytest.raises(CellUnavailable):
        await plane.provisioning.create_tenant("acme", "cell-a", actor=OPERATOR)
    with pytest.raises(TenantProvisioning, match="repeat it first"):
        await plane.provisioning.create_key("acme", actor=OPERATOR)
