"""The client of a cell's operator API. Method: a real HTTP server on loopback that misbehaves."""

import hashlib
import threading
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from control_plane import cells
from control_plane.cells import CellClient
from control_plane.errors import CellRefused, CellUnavailable
from control_plane.routing import CellName, Epoch

SHA256 = hashlib.sha256(b"secret").digest()


async def test_every_operation(cell_client: CellClient, small_cell: Any) -> None:
    tenant, key = uuid4(), uuid4()
    assert await cell_client.unhealthy_reason() is None
    assert await cell_client.tenant(tenant) is None
    head = await cell_client.put_tenant(tenant, Epoch(1))
    assert (head.organization_id, head.state, head.epoch, head.last_seq) == (
        str(tenant),
        "owned",
        1,
        0,
    )
    assert (
        await cell_client.put_tenant(tenant, Epoch(1)) == head == await cell_client.tenant(tenant)
    )
    await cell_client.put_key(tenant, key, SHA256)
    assert small_cell.keys == {(str(tenant), str(key)): SHA256.hex()}
    await cell_client.delete_key(tenant, key)
    assert small_cell.revoked == {(str(tenant), str(key))}
    status = await cell_client.status()
    assert (status.tenants, status.writer_epoch, status.batch_ms_p99) == (1, 3, 7.5)


async def test_an_unhealthy_cell_says_why(cell_client: CellClient, small_cell: Any) -> None:
    small_cell.unhealthy = "its Postgres is away"
    assert await cell_client.unhealthy_reason() == "its Postgres is away"


async def test_a_silent_cell_is_unavailable_after_the_deadline(
    cell_client: CellClient, small_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "REQUEST_S_MAX", 0.5)
    small_cell.hang = threading.Event()
    with pytest.raises(CellUnavailable, match=r"cell-a did not answer within 0\.5 s"):
        await cell_client.put_tenant(uuid4(), Epoch(1))


async def test_an_absent_cell_is_unavailable(http_client: httpx.AsyncClient) -> None:
    absent = CellClient(
        http_client, name=CellName("cell-a"), operator_address="127.0.0.1:1", token="t"
    )
    with pytest.raises(CellUnavailable, match="cannot be reached") as caught:
        await absent.status()
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (JSONResponse({"reason": "full"}, 503), CellUnavailable),
        (JSONResponse({}, 429), CellUnavailable),
        (JSONResponse({}, 401), CellRefused),
        (JSONResponse({}, 500), CellRefused),
        (PlainTextResponse("<html>"), CellRefused),
        (JSONResponse({"cell": 3}), CellRefused),
    ],
    ids=["503", "429", "401", "500", "not JSON", "another form"],
)
async def test_other_answers(
    cell_client: CellClient, small_cell: Any, answer: JSONResponse, error: type[Exception]
) -> None:
    small_cell.refuse = lambda request: answer
    with pytest.raises(error) as caught:
        await cell_client.status()
    assert small_cell.token not in str(caught.value)
