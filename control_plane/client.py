"""The control plane's HTTP API as its clients call it: the CLI, tests, scripts.

Synchronous, one connection, a deadline for every call. Raises PlatformUnavailable with the way to
start the platform, and PlatformRefused with the server's own words.
"""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
import msgspec

from control_plane.access import read_token
from control_plane.errors import PlatformError, PlatformRefused, PlatformUnavailable
from control_plane.explanation import Explanation
from control_plane.move.certificate import Certificate
from control_plane.routing import TenantLimits
from control_plane.verify.report import VERIFICATION_S_MAX, VerificationReport
from control_plane.wire import (
    MAX_PAUSE_MS,
    WINDOW_S,
    CreatedKey,
    CreatedTenant,
    ErrorAnswer,
    ListedKey,
    ListedTenant,
    MoveRehearsal,
    MoveReport,
    NewMove,
    NewTenant,
    ReclaimedTenant,
    ReclaimWish,
    Reconciliation,
    RevokedKey,
    StatusReport,
)

CONNECT_S_MAX = 3.0
REQUEST_S_MAX = 30.0
"""Longer than the control plane takes at most: a creation is three calls to a cell."""

VERIFY_S_MAX = VERIFICATION_S_MAX + 60

MOVE_POLL_S = 0.2
AWAY_S_MAX = 60.0

_AnswerT = TypeVar("_AnswerT")


class OperatorClient:
    """A platform, addressed by its control plane's URL; the token is found by `access.py`."""

    def __init__(self, control_url: str) -> None:
        self.control_url = control_url.rstrip("/")
        token = read_token(control_url)
        # trust_env: a proxy of the environment must never see an operator token.
        self._client = httpx.Client(
            base_url=self.control_url,
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def status(self) -> StatusReport:
        return self._request("GET", "/v1/status", StatusReport)

    def create_tenant(self, slug: str, cell: str | None = None) -> CreatedTenant:
        body = NewTenant(slug=slug, cell=cell)
        return self._request("POST", "/v1/tenants", CreatedTenant, body)

    def tenants(self) -> list[ListedTenant]:
        return self._request("GET", "/v1/tenants", list[ListedTenant])

    def tenant(self, slug: str) -> ListedTenant:
        return self._request("GET", f"/v1/tenants/{_part(slug)}", ListedTenant)

    def limit_tenant(self, slug: str, limits: TenantLimits) -> TenantLimits:
        """Replaces all the tenant's limits."""
        path = f"/v1/tenants/{_part(slug)}/limits"
        return self._request("PUT", path, TenantLimits, limits)

    def create_key(self, slug: str) -> CreatedKey:
        return self._request("POST", f"/v1/tenants/{_part(slug)}/keys", CreatedKey)

    def keys(self, slug: str) -> list[ListedKey]:
        return self._request("GET", f"/v1/tenants/{_part(slug)}/keys", list[ListedKey])

    def revoke_key(self, slug: str, key_id: UUID) -> RevokedKey:
        return self._request("DELETE", f"/v1/tenants/{_part(slug)}/keys/{key_id}", RevokedKey)

    def verify(self, slug: str) -> VerificationReport:
        """Returns when the verification is done, which takes as long as the tenant is large."""
        path = f"/v1/tenants/{_part(slug)}/verify"
        return self._request("POST", path, VerificationReport, wait_s=VERIFY_S_MAX)

    def reconcile(self, slug: str) -> Reconciliation:
        """Returns when it is done, which takes as long as the tenant is large."""
        path = f"/v1/tenants/{_part(slug)}/reconcile"
        return self._request("POST", path, Reconciliation, wait_s=VERIFY_S_MAX)

    def reclaim(self, cell: str, *, accepts_loss: bool = False) -> list[ReclaimedTenant]:
        """Returns when it is done, which takes as long as the tenants are large."""
        path = f"/v1/cells/{_part(cell)}/reclaim"
        wish = ReclaimWish(accepts_loss=accepts_loss)
        return self._request("POST", path, list[ReclaimedTenant], wish, wait_s=VERIFY_S_MAX)

    def explain_request(self, request_id: str) -> Explanation:
        path = f"/v1/explanations/requests/{_part(request_id)}"
        return self._request("GET", path, Explanation)

    def explain_tenant(self, slug: str) -> Explanation:
        return self._request("GET", f"/v1/explanations/tenants/{_part(slug)}", Explanation)

    def create_move(
        self,
        slug: str,
        cell: str,
        *,
        window_s: int = WINDOW_S,
        max_pause_ms: int = MAX_PAUSE_MS,
    ) -> MoveReport:
        """Returns as soon as the move is planned; see `move`."""
        body = NewMove(tenant=slug, cell=cell, window_s=window_s, max_pause_ms=max_pause_ms)
        return self._request("POST", "/v1/moves", MoveReport, body)

    def rehearse_move(self, slug: str, cell: str, *, max_pause_ms: int) -> MoveRehearsal:
        """Counts the tenant's rows, which takes as long as it is large."""
        body = NewMove(tenant=slug, cell=cell, max_pause_ms=max_pause_ms)
        path = "/v1/moves/rehearsals"
        return self._request("POST", path, MoveRehearsal, body, wait_s=VERIFY_S_MAX)

    def moves(self) -> list[MoveReport]:
        """The latest, newest first."""
        return self._request("GET", "/v1/moves", list[MoveReport])

    def move(self, move_id: UUID) -> MoveReport:
        return self._request("GET", f"/v1/moves/{move_id}", MoveReport)

    def watch_move(
        self, move_id: UUID, until: Callable[[MoveReport], bool]
    ) -> Iterator[MoveReport]:
        """What is known of the move, again and again, up to a report of which `until` holds.

        A control plane that restarts goes on with the move: for AWAY_S_MAX it is waited for.
        """
        answered_s = time.monotonic()
        while True:
            try:
                report = self.move(move_id)
            except PlatformError as exc:
                if not is_back_soon(exc) or time.monotonic() - answered_s > AWAY_S_MAX:
                    raise
            else:
                answered_s = time.monotonic()
                yield report
                if until(report):
                    return
            time.sleep(MOVE_POLL_S)

    def abort_move(self, move_id: UUID) -> MoveReport:
        return self._request("POST", f"/v1/moves/{move_id}/abort", MoveReport)

    def roll_back_move(self, move_id: UUID) -> MoveReport:
        """The move that brings the tenant back, as soon as it is planned."""
        return self._request("POST", f"/v1/moves/{move_id}/rollback", MoveReport)

    def certificate(self, move_id: UUID) -> Certificate:
        return self._request("GET", f"/v1/moves/{move_id}/certificate", Certificate)

    def finish_move(self, move_id: UUID) -> MoveReport:
        """End the window in which the move can be rolled back."""
        return self._request("POST", f"/v1/moves/{move_id}/finish", MoveReport)

    def _request(
        self,
        method: str,
        path: str,
        kind: type[_AnswerT],
        body: object = None,
        wait_s: float = REQUEST_S_MAX,
    ) -> _AnswerT:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            response = self._client.request(
                method,
                path,
                content=content,
                headers=headers,
                timeout=httpx.Timeout(wait_s, connect=CONNECT_S_MAX),
            )
        except httpx.TimeoutException as exc:
            raise PlatformUnavailable(
                f"the control plane at {self.control_url} did not answer in time"
            ) from exc
        except httpx.TransportError as exc:
            raise PlatformUnavailable(
                f"no control plane answers at {self.control_url}: start the platform with"
                " `cloister up`, or name its port with --control-port"
            ) from exc
        if response.status_code >= 400:
            raise self._refusal(response)
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as exc:
            raise PlatformRefused(
                f"{self.control_url} is not a control plane of this release: {exc}",
                code="answer_malformed",
                status=response.status_code,
            ) from exc

    def _refusal(self, response: httpx.Response) -> PlatformRefused:
        try:
            said = msgspec.json.decode(response.content, type=ErrorAnswer).errors
        except msgspec.DecodeError:
            message = f"{self.control_url} answered {response.status_code}"
            return PlatformRefused(message, code="unknown", status=response.status_code)
        return PlatformRefused(said.message, code=said.code, status=response.status_code)


def is_back_soon(exc: PlatformError) -> bool:
    """Whether the same call may succeed in a moment: the control plane restarts, or the like."""
    return exc.retryable


def _part(text: str) -> str:
    """One segment of a path, whatever its characters."""
    return quote(text, safe="")
