"""The HTTP API. Method: requests to the application in process, over a real catalog."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from control_plane.app import ControlPlane, create_app
from control_plane.catalog import Catalog
from control_plane.errors import CatalogUnavailable

OPERATOR = {"authorization": "Bearer operator-token-of-the-platform"}
ROUTER = {"authorization": "Bearer router-token-of-the-platform"}


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(plane), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://control", headers=OPERATOR
    ) as client:
        yield client


async def create(api: httpx.AsyncClient, slug: str, **more: str) -> dict[str, Any]:
    response = await api.post("/v1/tenants", json={"slug": slug, **more})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def test_a_tenant_is_created_listed_and_routed(api: httpx.AsyncClient) -> None:
    created = await create(api, "acme", cell="cell-b")
    assert created.keys() == {"tenant", "organization_id", "api_key", "cell"}
    assert (created["tenant"], created["cell"]) == ("acme", "cell-b")
    listed = (await api.get("/v1/tenants")).json()
    assert [{**tenant, "created_at": None} for tenant in listed] == [
        {
            "tenant": "acme",
            "organization_id": created["organization_id"],
            "cell": "cell-b",
            "epoch": 1,
            "state": "active",
            "created_at": None,
            "limits": {},
        }
    ]
    assert (await api.get("/v1/tenants/acme")).json() == listed[0]
    table = (await api.get("/v1/routing-table", headers=ROUTER)).json()
    assert table["tenants"] == {created["organization_id"]: {"cell": "cell-b", "epoch": 1}}
    assert table["cells"]["cell-b"] == {"address": "127.0.0.1:8102"}


async def test_limits_reach_the_routing_table_at_once(api: httpx.AsyncClient) -> None:
    created = await create(api, "acme")
    before = (await api.get("/v1/routing-table", headers=ROUTER)).json()
    assert "limits" not in before
    limits = {"requests_per_s": 50.5, "in_flight": 8}
    answer = await api.put("/v1/tenants/acme/limits", json=limits)
    assert (answer.status_code, answer.json()) == (200, limits)
    table = (await api.get("/v1/routing-table", headers=ROUTER)).json()
    assert table["limits"] == {created["organization_id"]: limits}
    assert table["version"] == before["version"] + 1
    assert (await api.get("/v1/tenants")).json()[0]["limits"] == limits
    assert (await api.put("/v1/tenants/acme/limits", json={})).status_code == 200
    table = (await api.get("/v1/routing-table", headers=ROUTER)).json()
    assert "limits" not in table


@pytest.mark.parametrize(
    ("slug", "limits", "status"),
    [
        ("nobody", {}, 404),
        ("acme", {"requests_per_s": 0}, 400),
        ("acme", {"in_flight": -1}, 400),
        ("acme", {"burst": 1.5}, 400),
        ("acme", {"requests": 5}, 400),
    ],
)
async def test_limits_that_are_refused(
    api: httpx.AsyncClient, slug: str, limits: dict[str, Any], status: int
) -> None:
    await create(api, "acme")
    answer = await api.put(f"/v1/tenants/{slug}/limits", json=limits)
    assert answer.status_code == status, answer.text
    assert (await api.get("/v1/tenants")).json()[0]["limits"] == {}


async def test_no_answer_and_no_row_holds_a_secret_afterwards(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    secret = (await create(api, "acme"))["api_key"]
    for path in ("/v1/tenants", "/v1/tenants/acme/keys", "/v1/status"):
        assert secret not in (await api.get(path)).text
    async with plane.catalog.transaction() as tx:
        tables = await tx.execute("SELECT t::text FROM tenants t UNION SELECT a::text FROM audit a")
        keys = await tx.execute("SELECT k::text AS t FROM api_keys k")
        assert secret not in str([*await tables.fetchall(), *await keys.fetchall()])


async def test_a_key_is_shown_even_if_the_catalog_goes_away_after_it_was_made(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Catalog) -> int:
        raise CatalogUnavailable("away")

    monkeypatch.setattr(Catalog, "routing_version", away)
    assert (await create(api, "acme"))["api_key"].startswith("ck_")


async def test_keys(api: httpx.AsyncClient) -> None:
    created = await create(api, "acme")
    response = await api.post("/v1/tenants/acme/keys")
    assert response.status_code == 201
    key = response.json()
    assert key.keys() == {"tenant", "organization_id", "key_id", "api_key"}
    assert key["organization_id"] == created["organization_id"]
    response = await api.delete(f"/v1/tenants/acme/keys/{key['key_id']}")
    assert (response.status_code, response.json()["state"]) == (200, "revoked")
    listed = (await api.get("/v1/tenants/acme/keys")).json()
    assert [found["state"] for found in listed] == ["active", "revoked"]


KEY = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/v1/status", {}, 401, "unauthenticated"),
        ("GET", "/v1/status", {"authorization": "Bearer wrong"}, 401, "unauthenticated"),
        ("GET", "/v1/status", ROUTER, 403, "forbidden"),
        ("POST", "/v1/tenants", ROUTER, 403, "forbidden"),
        ("GET", "/v1/tenants", {}, 401, "unauthenticated"),
        ("POST", "/v1/tenants/acme/keys", {}, 401, "unauthenticated"),
        ("DELETE", f"/v1/tenants/acme/keys/{KEY}", ROUTER, 403, "forbidden"),
        ("GET", "/v1/moves", ROUTER, 403, "forbidden"),
        ("POST", "/v1/moves", ROUTER, 403, "forbidden"),
        ("GET", f"/v1/moves/{KEY}", {}, 401, "unauthenticated"),
        ("POST", f"/v1/moves/{KEY}/abort", ROUTER, 403, "forbidden"),
        ("GET", "/v1/routing-table", {}, 401, "unauthenticated"),
        ("GET", "/v1/routing-table", ROUTER, 200, None),
        ("GET", "/v1/routing-table", OPERATOR, 200, None),
        ("GET", "/v1/routing-table?after=&wait_ms=", ROUTER, 200, None),
        ("GET", "/healthz", {}, 200, None),
    ],
)
async def test_who_may_do_what(
    api: httpx.AsyncClient,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    code: str | None,
) -> None:
    api.headers.pop("authorization")
    response = await api.request(method, path, headers=headers)
    assert response.status_code == status
    if code:
        assert response.json()["errors"]["code"] == code
        assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize(
    ("content", "status", "code", "words"),
    [
        (b"", 400, "request_malformed", "body"),
        (b"{", 400, "request_malformed", "body"),
        (b"\xff\xfe", 400, "request_malformed", "body"),
        (b"[]", 400, "request_malformed", "Expected `object`"),
        (b'{"slug": 1}', 400, "request_malformed", r"$.slug"),
        (b'{"slug": "acme", "colour": 1}', 400, "request_malformed", "colour"),
        (b'{"slug": "Acme Ltd"}', 400, "request_malformed", "cannot name a tenant"),
        (b'{"slug": "acme", "cell": "cell-z"}', 422, "placement_refused", "cell-a, cell-b"),
        (b'{"slug": "' + b"a" * 70_000 + b'"}', 413, "body_too_large", "65536"),
    ],
)
async def test_bad_bodies(
    api: httpx.AsyncClient, content: bytes, status: int, code: str, words: str
) -> None:
    response = await api.post("/v1/tenants", content=content)
    error = response.json()["errors"]
    assert (response.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert (await api.get("/v1/tenants")).json() == [], "nothing was done"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2", 404, "not_found"),
        ("PUT", "/v1/tenants", 405, "request_malformed"),
        ("GET", "/v1/tenants/nobody", 404, "not_found"),
        ("GET", "/v1/tenants/nobody/keys", 404, "not_found"),
        ("POST", "/v1/tenants/nobody/keys", 404, "not_found"),
        ("DELETE", "/v1/tenants/nobody/keys/x", 404, "not_found"),
        ("GET", "/v1/moves/x", 404, "not_found"),
        ("GET", f"/v1/moves/{KEY}", 404, "not_found"),
        ("POST", f"/v1/moves/{KEY}/abort", 404, "not_found"),
        ("POST", "/v1/moves", 400, "request_malformed"),
        ("GET", "/v1/routing-table?after=x", 400, "request_malformed"),
        ("GET", "/v1/routing-table?after=-1", 400, "request_malformed"),
        ("GET", "/v1/routing-table?wait_ms=1e9", 400, "request_malformed"),
    ],
)
async def test_bad_requests(
    api: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await api.request(method, path)
    assert (response.status_code, response.json()["errors"]["code"]) == (status, code)


async def test_a_slug_in_use_is_409_and_names_it(api: httpx.AsyncClient) -> None:
    await create(api, "acme")
    response = await api.post("/v1/tenants", json={"slug": "acme"})
    assert response.status_code == 409
    assert response.json() == {
        "errors": {
            "code": "slug_in_use",
            "message": "there is a tenant 'acme' already",
            "parameter": "slug",
        }
    }


async def test_a_poll_answers_304_after_its_wait_and_at_once_on_a_change(
    api: httpx.AsyncClient,
) -> None:
    version = (await api.get("/v1/routing-table")).json()["version"]
    response = await api.get(f"/v1/routing-table?after={version}&wait_ms=10")
    assert (response.status_code, response.content) == (304, b"")
    async with asyncio.timeout(60):
        poll = asyncio.create_task(api.get(f"/v1/routing-table?after={version}&wait_ms=30000"))
        created = await create(api, "acme")
        table = (await poll).json()
    assert table["version"] > version
    assert created["organization_id"] in table["tenants"]


async def test_a_router_is_told_what_changed_since(api: httpx.AsyncClient) -> None:
    await create(api, "acme")
    whole = (await api.get("/v1/routing-table", headers=ROUTER)).json()
    created = await create(api, "globex")
    known = f"after={whole['version']}&mark={whole['mark']}"
    news = (await api.get(f"/v1/routing-table?{known}", headers=ROUTER)).json()
    assert (news["since"], news["version"]) == (whole["version"], whole["version"] + 1)
    assert list(news["tenants"]) == [created["organization_id"]]
    without_mark = await api.get(f"/v1/routing-table?after={whole['version']}", headers=ROUTER)
    assert len(without_mark.json()["tenants"]) == 2


async def test_the_status(api: httpx.AsyncClient, plane: ControlPlane, small_cell: Any) -> None:
    await plane.fleet.router.observe()
    await create(api, "acme", cell="cell-b")
    status = (await api.get("/v1/status")).json()
    assert status["healthy"] is True
    assert [(cell["name"], cell["zone"], cell["tenants"]) for cell in status["cells"]] == [
        ("cell-a", "zone-1", 0),
        ("cell-b", "zone-2", 1),
    ]
    assert status["tenants"] == 1
    assert status["router"]["healthy"] is True
    assert status["cells"][0]["reconcile_sentence"] == "schema and tuning not compared yet"

    small_cell.unhealthy = "its Postgres is away"
    for reconciler in plane.fleet.reconcilers.values():
        await reconciler.observe()
    status = (await api.get("/v1/status")).json()
    assert status["healthy"] is False
    assert status["cells"][0]["reason"] == "its Postgres is away"


async def test_while_starting_it_is_unhealthy_and_says_why(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    plane.unready = "the catalog does not answer"
    response = await api.get("/healthz")
    assert response.status_code == 503
    assert response.json() == {"status": "unhealthy", "reason": "the catalog does not answer"}
    response = await api.get("/v1/tenants")
    assert response.status_code == 503
    assert "not ready: the catalog does not answer" in response.json()["errors"]["message"]


async def test_without_the_catalog_routers_are_served_and_operators_told(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: Catalog) -> None:
        raise CatalogUnavailable("the catalog does not answer")

    monkeypatch.setattr(Catalog, "tenants", away)
    response = await api.get("/v1/tenants")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["errors"]["code"] == "catalog_unavailable"
    assert (await api.get("/v1/routing-table", headers=ROUTER)).status_code == 200


async def test_a_mistake_of_ours_tells_nothing_of_itself(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Catalog) -> None:
        raise ZeroDivisionError("an inner secret")

    monkeypatch.setattr(Catalog, "tenants", broken)
    response = await api.get("/v1/tenants")
    assert (response.status_code, response.json()["errors"]["code"]) == (500, "internal")
    assert "secret" not in response.text
