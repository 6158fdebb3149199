"""How many requests were held in the pause of a move, as far as the router knows.

Method: what its answer says is a table; then the question, asked of a router in this process.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from control_plane.catalog import Catalog
from control_plane.explaining import Explanations
from control_plane.explanation import TenantRoute
from control_plane.move.plan import Decision, Move
from control_plane.move.register import MoveRecord
from control_plane.routing import CellName, Epoch

PLANNED = datetime(2026, 1, 1, tzinfo=UTC)
PLANNED_S = PLANNED.timestamp()
RECORD = MoveRecord(
    move=Move(
        move_id=uuid4(),
        tenant_id=uuid4(),
        source=CellName("cell-a"),
        target=CellName("cell-b"),
        epoch_old=Epoch(4),
        epoch_new=Epoch(5),
    ),
    slug="acme",
    decision=Decision.COMMIT,
    wants_abort=None,
    phase="commit",
    progress={},
    created_at=PLANNED,
    decided_at=PLANNED,
    window_ends_at=None,
    window_is_open=False,
    cut=None,
    finished_at=PLANNED,
)


def route(**known: Any) -> TenantRoute:
    fields = dict.fromkeys(TenantRoute.__struct_fields__) | {"epoch": 5, "held_for_it": 0}
    return TenantRoute(**fields | known)  # type: ignore[arg-type]  # of a dict all are one type


@pytest.mark.parametrize(
    ("known", "held"),
    [
        ({"held_for_epoch": 5, "held_for_it": 7, "serving_since": PLANNED_S + 9}, 7),
        # None was, of a router that was there all the time.
        ({"serving_since": PLANNED_S - 9}, 0),
        ({"held_for_epoch": 3, "held_for_it": 7, "serving_since": PLANNED_S - 9}, 0),
        # It was started since, or is of an older release; or the tenant has moved again.
        ({"serving_since": PLANNED_S + 9}, None),
        ({}, None),
        ({"held_for_epoch": 6, "held_for_it": 7, "serving_since": PLANNED_S - 9}, None),
        ({"epoch": 6, "serving_since": PLANNED_S - 9}, None),
        # It has not heard of the decision yet.
        ({"epoch": 4, "serving_since": PLANNED_S - 9}, None),
    ],
)
def test_what_the_router_knows(known: dict[str, Any], held: int | None) -> None:
    assert route(**known).held_for(5, PLANNED_S) == held


async def test_the_router_is_asked_about_decided_moves(catalog: Catalog) -> None:
    asked: list[str] = []
    tenant = msgspec.to_builtins(
        route(
            held_for_epoch=5,
            held_for_it=7,
            **{"cell": "cell-b", "address": "", "routing_version": 1, "routing_is_fresh": True},
            **{"in_flight": 0, "in_flight_max": 1, "held": 0, "cell_is_tried": True},
            requests=[],
        )
    )

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        assert request.headers["authorization"] == "Bearer the-token"
        if len(asked) == 1:
            return httpx.Response(200, json=tenant)
        if len(asked) == 2:
            return httpx.Response(404)
        raise httpx.ConnectError("nobody is there")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        explanations = Explanations(catalog, client, "router:1", "the-token")
        assert await explanations.requests_held(replace(RECORD, decision=None)) is None
        assert asked == []
        # Known; not known to the router; and no router.
        assert [await explanations.requests_held(RECORD) for _ in range(3)] == [7, None, None]
    assert set(asked) == {f"/tenants/{RECORD.move.tenant_id}"}
