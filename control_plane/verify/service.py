"""Verifications on request: finds the tenant's cell, runs each in a thread, few at once.

A thread, because decoding a journal would hold up the routing table's long polls. It ends early
when its caller has gone, and when the control plane stops.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from control_plane.catalog import Catalog
from control_plane.errors import CellUnavailable, NotFound
from control_plane.routing import CellName
from control_plane.verify.errors import VerificationBusy, VerificationStopped
from control_plane.verify.report import VerificationReport
from control_plane.verify.verification import Verification

CONCURRENT_MAX: Final = 2
"""Each may sort gigabytes in its cell's database."""

CALLER_ASKED_EVERY_S: Final = 1.0
STOP_S_MAX: Final = 5.0
STOP_AGAIN_S: Final = 0.1


async def nobody_has_gone() -> bool:
    """Of a verification that goes on whoever still wants to know."""
    return False


class Verifications:
    """What the route `POST /v1/tenants/{slug}/verify` needs."""

    def __init__(self, catalog: Catalog, auditor_dsns: Mapping[CellName, str]) -> None:
        self._catalog = catalog
        self._auditor_dsns = auditor_dsns
        self._running = 0

    async def verify(
        self, slug: str, is_caller_gone: Callable[[], Awaitable[bool]]
    ) -> VerificationReport:
        """The report. Raises NotFound, VerificationBusy, CellUnavailable, VerificationStopped."""
        tenant = await self._catalog.tenant(slug)
        if tenant.cell is None:
            raise NotFound(f"tenant {slug!r} is not placed yet", parameter="slug")
        dsn = self._auditor_dsns.get(tenant.cell)
        if dsn is None:
            raise CellUnavailable(f"the provider does not run {tenant.cell}")
        if self._running >= CONCURRENT_MAX:
            raise VerificationBusy(f"{self._running} verifications run already; try again later")
        verification = Verification(
            dsn, tenant_id=str(tenant.organization_id), tenant=slug, cell=tenant.cell
        )
        self._running += 1
        try:
            return await _run(verification, is_caller_gone)
        finally:
            self._running -= 1


async def _run(
    verification: Verification, is_caller_gone: Callable[[], Awaitable[bool]]
) -> VerificationReport:
    thread = asyncio.create_task(asyncio.to_thread(verification.run), name="verification")
    try:
        while not (await asyncio.wait({thread}, timeout=CALLER_ASKED_EVERY_S))[0]:
            if await is_caller_gone():
                await _stop(verification, thread)
                raise VerificationStopped("the caller has gone")
        return thread.result()
    except asyncio.CancelledError:
        await _stop(verification, thread)
        raise


async def _stop(verification: Verification, thread: "asyncio.Task[VerificationReport]") -> None:
    """End a thread, which cannot be cancelled: it is told, and given the time to hear it."""
    # Whatever it ends with, and whenever, nobody is there any more to hear of it.
    thread.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    deadline = time.monotonic() + STOP_S_MAX
    while not thread.done() and time.monotonic() < deadline:
        # Again and again: a statement is cancelled only if it has begun.
        await asyncio.to_thread(verification.stop)
        await asyncio.wait({thread}, timeout=STOP_AGAIN_S)
