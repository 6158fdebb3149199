"""Verifications on request: finds the tenant's cell, runs each in a process, few at once.

A process, because decoding a journal in this one would hold up the routing table's long polls, and
moves that are in their pause. It ends early when its caller has gone, and when the control plane
stops, or is not there any more.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from control_plane.catalog import Catalog
from control_plane.errors import CellUnavailable, NotFound
from control_plane.routing import CellName
from control_plane.verify.errors import VerificationBusy, VerificationStopped
from control_plane.verify.report import VERIFICATION_S_MAX, Job, Outcome, VerificationReport

CONCURRENT_MAX: Final = 2
"""Each may sort gigabytes in its cell's database."""

CALLER_ASKED_EVERY_S: Final = 1.0
STOP_S_MAX: Final = 7.0
"""It gives up by itself before."""


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
        job = Job(dsn=dsn, tenant_id=str(tenant.organization_id), tenant=slug, cell=tenant.cell)
        self._running += 1
        try:
            return await _run(job, is_caller_gone)
        finally:
            self._running -= 1


async def _run(job: Job, is_caller_gone: Callable[[], Awaitable[bool]]) -> VerificationReport:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "control_plane.verify",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # It is stopped from here; a Ctrl-C in the terminal is not for it.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reading = asyncio.create_task(process.stdout.read(), name="verification")
    deadline_s = time.monotonic() + VERIFICATION_S_MAX + STOP_S_MAX
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        while not (await asyncio.wait({reading}, timeout=CALLER_ASKED_EVERY_S))[0]:
            if await is_caller_gone():
                raise VerificationStopped("the caller has gone")
            if time.monotonic() > deadline_s:
                raise VerificationStopped(f"the database of {job.cell} does not answer")
        return _report(job, reading.result())
    finally:
        await _end(process, process.stdin)
        reading.cancel()


def _report(job: Job, answer: bytes) -> VerificationReport:
    try:
        outcome = msgspec.json.decode(answer, type=Outcome)
    except msgspec.DecodeError as exc:
        message = f"the verification of {job.tenant} ended without a result: see the log"
        raise VerificationStopped(message) from exc
    if outcome.stopped is not None:
        raise VerificationStopped(outcome.stopped)
    if outcome.report is None:
        raise CellUnavailable(outcome.unavailable or "")
    return outcome.report


async def _end(process: asyncio.subprocess.Process, stdin: asyncio.StreamWriter) -> None:
    """The end of its input tells it to stop; what does not hear that is killed."""
    stdin.close()
    try:
        async with asyncio.timeout(STOP_S_MAX):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
