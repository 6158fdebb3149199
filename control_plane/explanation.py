"""Why a request went where it went: what routers keep of it, and what an operator is told.

A router keeps the facts of the requests it answered last; the control plane adds the tenant's name
and the moves that were under way, and says all of it in sentences. Pure.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec


class AnsweredRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as a router kept it: GET /requests/{request_id} of its operator port."""

    request_id: str
    method: str
    path: str
    """Without its query."""
    status: int
    answered_at: float
    """Unix time in seconds."""
    organization_id: str | None
    """Null where it was refused before it was routed; so the next two."""
    cell: str | None
    """Which it went to last."""
    epoch: int | None
    routing_version: int | None
    """Of the router's table when it was answered."""
    resends: int
    """How often it was sent, or tried, again."""
    followed: int
    """Moves that it followed to another cell."""
    held_ms: int | None
    """From the cell's word that the tenant is moving to the answer; null where it was not held."""
    refused_because: str | None
    """The router's own words, where it answered itself."""
    may_be_executed: bool
    """An answer of a cell was lost: perhaps it was executed."""


class TenantRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Where a router sends a tenant: GET /tenants/{organization_id} of its operator port."""

    cell: str
    address: str
    epoch: int
    routing_version: int
    routing_is_fresh: bool
    """The control plane answered the router lately."""
    in_flight: int
    in_flight_max: int
    requests_per_s_max: float | None
    held: int
    """Now."""
    held_for_epoch: int | None = None
    """The last epoch that its requests waited for, as they do while it moves; null: they did not,
    or too many others moved since."""
    held_for_it: int = 0
    """How many of them did."""
    serving_since: float | None = None
    """Unix time in seconds: what was before, this router does not know."""
    cell_is_tried: bool
    """False while the cell failed so often that requests to it are refused at once."""
    requests: list[AnsweredRequest]
    """Its last ones, newest first."""

    def held_for(self, epoch: int, since: float) -> int | None:
        """Requests that waited for the epoch in a move begun at that time; None: not known."""
        if self.held_for_epoch == epoch:
            return self.held_for_it
        is_known = self.serving_since is not None and self.serving_since <= since
        # A later move has taken the place of what was known of this one.
        is_latest = self.held_for_epoch is None or self.held_for_epoch < epoch
        return 0 if is_known and is_latest and self.epoch == epoch else None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/explanations/…"""

    tenant: str | None
    """Its slug."""
    sentences: list[str]
    moves: list[UUID]
    """Of the tenant, that were under way then."""
    request: AnsweredRequest | None = None
    route: TenantRoute | None = None


def explain_request(
    request: AnsweredRequest, slug: str | None, moves: Sequence[UUID]
) -> Explanation:
    """All that is known of the request."""
    what = f"{request.method} {request.path}: {request.status}"
    if request.refused_because is not None:
        what += f", by the router: {request.refused_because}"
    sentences = [what]
    if request.cell is None:
        sentences.append("It was refused before it was routed.")
    else:
        sentences.append(
            f"It went to {request.cell} at epoch {request.epoch}, by version"
            f" {request.routing_version} of the routing table."
        )
    if request.held_ms is not None:
        because = f"move {moves[-1]}" if moves else "no move that the catalog knows of"
        sentences.append(f"It was held for {request.held_ms} ms, because of {because}.")
    if request.followed:
        sentences.append(f"It followed the tenant to another cell, {request.followed} times.")
    if request.resends:
        sentences.append(f"It was sent, or tried, {request.resends} times more.")
    if request.may_be_executed and request.refused_because is not None:
        sentences.append("A cell's answer was lost: it may have been executed.")
    return Explanation(tenant=slug, sentences=sentences, moves=list(moves), request=request)


def explain_route(route: TenantRoute, slug: str, moves: Sequence[UUID]) -> Explanation:
    """Where the tenant's next request would go."""
    rate = route.requests_per_s_max
    sentences = [
        f"Requests go to {route.cell} ({route.address}) at epoch {route.epoch}, by version"
        f" {route.routing_version} of the routing table.",
        f"{route.in_flight} are in flight, {route.in_flight_max} may be; "
        + ("their rate is not limited." if rate is None else f"{rate:g} per second are taken."),
    ]
    if not route.routing_is_fresh:
        sentences.append("The router has not heard from the control plane lately.")
    if not route.cell_is_tried:
        sentences.append(f"{route.cell} failed a moment ago: its requests are refused at once.")
    if route.held:
        sentences.append(f"{route.held} requests are held, as the tenant is moving.")
    sentences += [f"Move {move} is under way." for move in moves]
    return Explanation(tenant=slug, sentences=sentences, moves=list(moves), route=route)
