"""The cells and the router together. Method: what they answer in, the status report out."""

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from control_plane.app import ControlPlane
from control_plane.fleet import RouterObserver
from control_plane.placement import choose_cell


def answer_healthz(response: Response) -> Any:
    def answer(request: Request) -> Response | None:
        return response if request.url.path == "/healthz" else None

    return answer


@pytest.mark.parametrize(
    ("response", "healthy", "reason", "lag"),
    [
        (JSONResponse({"status": "ok", "routing_version": 7}), True, None, 2),
        (JSONResponse({"status": "ok", "routing_version": 10}), True, None, 0),
        (JSONResponse({"status": "ok"}), True, None, None),
        (
            JSONResponse({"status": "unhealthy", "reason": "no table", "routing_version": 0}, 503),
            False,
            "no table",
            9,
        ),
        (PlainTextResponse("down", 502), False, "the router cannot be asked", None),
        (JSONResponse({}, 500), False, "the router answered 500", None),
    ],
)
async def test_the_router_is_observed(
    http_client: Any,
    small_cell: Any,
    response: Response,
    healthy: bool,
    reason: str | None,
    lag: int | None,
) -> None:
    small_cell.refuse = answer_healthz(response)
    observer = RouterObserver(http_client, "127.0.0.1:8080", small_cell.address)
    await observer.observe()
    report = observer.report(9)
    assert (report.address, report.healthy) == ("127.0.0.1:8080", healthy)
    assert report.routing_lag == lag
    assert (report.reason or "").startswith(reason or "")
    assert (report.reason is None) == healthy


async def test_an_absent_router(http_client: Any) -> None:
    observer = RouterObserver(http_client, "127.0.0.1:8080", "127.0.0.1:1")
    assert "cannot be asked" in (await observer.observe()).sentence


async def test_a_cell_that_left_the_file_is_reported_and_never_chosen(plane: ControlPlane) -> None:
    await plane.provisioning.create_tenant("acme", "cell-b", actor="test")
    await plane.catalog.ensure_cells(
        [{"name": "cell-a", "zone": "z", "api_address": "127.0.0.1:1", "accepts_tenants": True}]
    )
    # As after a restart without cell-b.
    plane.fleet.reconcilers = {
        name: found for name, found in plane.fleet.reconcilers.items() if name == "cell-a"
    }
    status = await plane.fleet.status(1)
    assert status.cells[1].reason == "it is not in cells.yaml, but has tenants"
    assert (status.healthy, status.cells[1].tenants) == (False, 1)
    assert choose_cell(await plane.fleet.candidates(), None) == "cell-a"


async def test_rates_of_the_cells_decide_between_equals(
    plane: ControlPlane, small_cell: Any
) -> None:
    small_cell.commands_applied = 10_000
    for reconciler in plane.fleet.reconcilers.values():
        await reconciler.observe()
    assert choose_cell(await plane.fleet.candidates(), None) == "cell-b"
