"""Answers `cloister explain`: asks the router, and names the moves that were under way."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import httpx
import msgspec

from control_plane.catalog import Catalog
from control_plane.errors import NotFound, RouterUnavailable
from control_plane.explanation import (
    AnsweredRequest,
    Explanation,
    TenantRoute,
    explain_request,
    explain_route,
)
from control_plane.move.register import MoveRecord, Register

ASK_S_MAX = 3.0
HELD_S_MAX = 0.5
"""A move is shown without what the router would say of it."""

_ToldT = TypeVar("_ToldT")


class Explanations:
    """What the routes of /v1/explanations need."""

    def __init__(
        self, catalog: Catalog, client: httpx.AsyncClient, operator_address: str, token: str
    ) -> None:
        self._catalog = catalog
        self._register = Register(catalog)
        self._client = client
        self._url = f"http://{operator_address}"
        self._headers = {"authorization": f"Bearer {token}"}

    async def request(self, request_id: str) -> Explanation:
        """Raises NotFound, RouterUnavailable."""
        told = await self._ask(f"/requests/{request_id}", AnsweredRequest)
        if told is None:
            raise NotFound(
                f"the router knows no request {request_id!r} among the last it answered",
                parameter="request",
            )
        if told.organization_id is None:
            return explain_request(told, None, ())
        until = datetime.fromtimestamp(told.answered_at, UTC)
        since = until - timedelta(milliseconds=told.held_ms or 0)
        tenant = UUID(told.organization_id)
        moves = await self._register.moves_between(tenant, since, until)
        return explain_request(told, await self._catalog.slug_of(tenant), moves)

    async def tenant(self, slug: str) -> Explanation:
        """Raises NotFound, RouterUnavailable."""
        tenant = (await self._catalog.tenant(slug)).organization_id
        route = await self._ask(f"/tenants/{tenant}", TenantRoute)
        if route is None:
            raise NotFound(f"the router does not know tenant {slug!r} yet", parameter="tenant")
        now = datetime.now(UTC)
        return explain_route(route, slug, await self._register.moves_between(tenant, now, now))

    async def requests_held(self, record: MoveRecord) -> int | None:
        """How many requests the router held in the move's pause; None: it does not know, or does
        not answer at once."""
        if record.decision is None:
            return None
        move = record.move
        try:
            route = await self._ask(f"/tenants/{move.tenant_id}", TenantRoute, HELD_S_MAX)
        except RouterUnavailable:
            return None
        since = record.created_at.timestamp()
        return None if route is None else route.held_for(move.epoch_new, since)

    async def _ask(self, path: str, kind: type[_ToldT], wait_s: float = ASK_S_MAX) -> _ToldT | None:
        try:
            async with asyncio.timeout(wait_s):
                answer = await self._client.get(self._url + path, headers=self._headers)
            if answer.status_code == 404:
                return None
            if answer.status_code != 200:
                raise RouterUnavailable(f"the router answered {answer.status_code}")
            return msgspec.json.decode(answer.content, type=kind)
        except TimeoutError as exc:
            raise RouterUnavailable("the router does not answer in time") from exc
        except (httpx.HTTPError, msgspec.DecodeError) as exc:
            raise RouterUnavailable(f"the router cannot be asked: {exc or type(exc)}") from exc
