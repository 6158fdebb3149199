"""`cloister explain`, and cells that listen to routers only. Method: a platform of processes."""

import json
from typing import Any

import httpx


def test_a_request_and_a_tenant_are_explained(platform: Any) -> None:
    tenant = platform.create_tenant("asks")
    auth = (tenant.organization_id, tenant.api_key)
    with httpx.Client(auth=auth, trust_env=False, timeout=60) as http:
        answer = http.get(f"{platform.ready['router']}/api/ping")
        assert answer.status_code == 200
        request_id = answer.headers["x-request-id"]
        told = json.loads(platform.run("explain", request_id, "--json").stdout)
        assert (told["tenant"], told["moves"]) == ("asks", [])
        request = told["request"]
        assert (request["path"], request["status"]) == ("/api/ping", 200)
        assert (request["cell"], request["epoch"]) == (tenant.cell, 1)
        shown = platform.run("explain", "--tenant", "asks").stdout
        assert f"Requests go to {tenant.cell}" in shown
        assert request_id in shown
        # Whoever is not a router is refused, with the right key, too.
        cells = json.loads(platform.run("status", "--json").stdout)["cells"]
        address = next(cell["address"] for cell in cells if cell["name"] == tenant.cell)
        direct = http.get(f"http://{address}/api/ping")
        assert (direct.status_code, direct.json()["errors"]["code"]) == (403, "forbidden")
    assert "no request" in platform.run("explain", "0-0", expected=1).stderr
    assert "no tenant" in platform.run("explain", "--tenant", "nobody", expected=1).stderr
    assert "REQUEST_ID" in platform.run("explain", expected=2).stderr
