"""The operator API of one cell, as the control plane calls it.

Every call has a deadline and can be repeated: the cell's operations are idempotent. Raises
CellUnavailable when there was no answer, CellRefused when the answer was no. Decides nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from uuid import UUID

import httpx
import msgspec

from control_plane.errors import CellRefused, CellUnavailable
from control_plane.routing import CellName, Epoch

REQUEST_S_MAX = 5.0
"""For changes; longer than a batch of the sequencer under load takes."""
OBSERVATION_S_MAX = 2.0
CONNECTIONS_MAX = 64

_AnswerT = TypeVar("_AnswerT")


class CellStatus(msgspec.Struct, frozen=True):
    """What a cell says of itself; fields unknown here are ignored, as cells may be newer."""

    cell: str
    schema_version: int
    writer_epoch: int
    tenants: int
    commands_applied: int
    """Since the cell's process began."""
    queue_depth: int
    batch_ms_p99: float | None
    last_error: str | None = None
    quarantined: int = 0
    """Tenants that nobody serves since its database was restored from a backup."""


class TenantHead(msgspec.Struct, frozen=True):
    """A tenant's head in the cell."""

    organization_id: str
    state: str
    epoch: int
    last_seq: int


class _Unhealthy(msgspec.Struct, frozen=True):
    reason: str


@asynccontextmanager
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    """The one HTTP client of the process, shared by all cells."""
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=30.0)
    # trust_env: a proxy of the environment must never see an operator token.
    async with httpx.AsyncClient(
        limits=limits, timeout=REQUEST_S_MAX, trust_env=False, follow_redirects=False
    ) as client:
        yield client


class CellClient:
    """One cell. Cheap: the connections belong to the shared client."""

    def __init__(
        self, client: httpx.AsyncClient, *, name: CellName, operator_address: str, token: str
    ) -> None:
        self.name = name
        self._client = client
        self._base = f"http://{operator_address}"
        self._headers = {"authorization": f"Bearer {token}"}

    async def unhealthy_reason(self) -> str | None:
        """None if the cell serves; its own words if it says that it does not."""
        response = await self._request("GET", "/healthz", seconds_max=OBSERVATION_S_MAX)
        if response.status_code == 200:
            return None
        if response.status_code == 503:
            return self._decode(response, _Unhealthy).reason
        raise CellRefused(f"cell {self.name} answered /healthz with {response.status_code}")

    async def status(self) -> CellStatus:
        response = await self._request("GET", "/operator/status", seconds_max=OBSERVATION_S_MAX)
        return self._decode(self._accepted(response, "GET /operator/status"), CellStatus)

    async def put_tenant(self, organization_id: UUID, epoch: Epoch) -> TenantHead:
        """The tenant's head, made now or there already."""
        path = f"/operator/tenants/{organization_id}"
        return self._decode(await self._change("PUT", path, {"epoch": epoch}), TenantHead)

    async def tenant(self, organization_id: UUID) -> TenantHead | None:
        path = f"/operator/tenants/{organization_id}"
        response = await self._request("GET", path, seconds_max=REQUEST_S_MAX)
        if response.status_code == 404:
            return None
        return self._decode(self._accepted(response, f"GET {path}"), TenantHead)

    async def put_key(self, organization_id: UUID, key_id: UUID, sha256: bytes) -> None:
        path = f"/operator/tenants/{organization_id}/keys/{key_id}"
        await self._change("PUT", path, {"sha256": sha256.hex()})

    async def delete_key(self, organization_id: UUID, key_id: UUID) -> None:
        await self._change("DELETE", f"/operator/tenants/{organization_id}/keys/{key_id}")

    async def _change(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> httpx.Response:
        response = await self._request(method, path, body, seconds_max=REQUEST_S_MAX)
        return self._accepted(response, f"{method} {path}")

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        seconds_max: float,
    ) -> httpx.Response:
        content = None if body is None else msgspec.json.encode(body)
        headers = self._headers | ({"content-type": "application/json"} if content else {})
        try:
            # httpx's own timeouts are per read; only this one bounds the whole exchange.
            async with asyncio.timeout(seconds_max):
                return await self._client.request(
                    method, self._base + path, content=content, headers=headers
                )
        except TimeoutError as exc:
            raise CellUnavailable(
                f"cell {self.name} did not answer within {seconds_max:g} s"
            ) from exc
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise CellUnavailable(f"cell {self.name} cannot be reached: {reason}") from exc

    def _accepted(self, response: httpx.Response, request: str) -> httpx.Response:
        """The response if the cell did it."""
        status = response.status_code
        if 200 <= status < 300:
            return response
        said = response.text[:200]
        if status in (429, 503):
            raise CellUnavailable(f"cell {self.name} cannot do it now ({status}): {said}")
        raise CellRefused(f"cell {self.name} refused {request} ({status}): {said}")

    def _decode(self, response: httpx.Response, kind: type[_AnswerT]) -> _AnswerT:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as exc:
            raise CellRefused(f"cell {self.name} gave an answer of another form: {exc}") from exc
