"""The level-triggered loops of the control plane: one pair for each cell, one for the router.

A pass re-reads everything, acts at most once and returns what it did as a sentence for people.
Nothing is remembered between passes but the last sentence and the last counter: a lost wake-up or
a killed process costs a repeated pass. Observing and ensuring are two loops, because building an
index may take hours, in which the cell must still be seen.

Ensuring: the cell's schema first (a cell without it cannot start), then its tuning. A failed or
waiting pass is repeated with growing pauses, a settled one every SETTLED_S and when woken.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg

from cell import schema
from cell.errors import SchemaMismatch
from control_plane.catalog import Catalog
from control_plane.cells import CellClient
from control_plane.errors import CatalogUnavailable, CellError, ControlPlaneError
from control_plane.observation import (
    NEVER_OBSERVED,
    CellObservation,
    Reading,
    observe_cell,
    unhealthy,
)
from control_plane.topology_specs import CellSpec
from control_plane.tuning import apply_tuning

OBSERVE_S = 1.0
SETTLED_S = 30.0
"""How often a cell that is as desired is compared again, in case somebody changed it by hand."""
PAUSE_S_MIN = 0.5
PAUSE_S_MAX = 30.0
TUNING_PAUSE_S_MAX = 600.0
"""A build that fails at its last row would read the whole table again at every attempt."""
RECORD_S = 10.0
"""How often an unchanged observation is written to the catalog."""
MIGRATION_S_MAX = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass of a loop came to."""

    sentence: str
    settled: bool
    """Whether nothing is left to do until something changes."""
    pause_s_max: float = PAUSE_S_MAX
    """The longest pause before an unsettled pass is repeated."""


class CellReconciler:
    """Keeps one cell observed and as desired."""

    def __init__(
        self, spec: CellSpec, owner_dsn: str, client: CellClient, catalog: Catalog
    ) -> None:
        self.spec = spec
        self.client = client
        self.observed: CellObservation = NEVER_OBSERVED
        self.ensured = Pass(sentence="schema and tuning not compared yet", settled=False)
        self._owner_dsn = owner_dsn
        self._catalog = catalog
        self._reading: Reading | None = None
        self._recorded_s = float("-inf")
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Makes the next ensuring pass happen now, such as after a tenant came to the cell."""
        self._woken.set()

    async def run(self) -> None:
        """Both loops, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            name = self.spec.name
            tasks.create_task(
                repeat(f"observe {name}", self.observe, OBSERVE_S), name=f"observe {name}"
            )
            tasks.create_task(
                repeat(f"ensure {name}", self.ensure, SETTLED_S, self._woken), name=f"ensure {name}"
            )

    async def observe(self) -> Pass:
        """Asks the cell how it is. An unhealthy cell is an observation, not a failed pass."""
        before = self.observed
        self.observed = await self._ask()
        changed = (before.healthy, before.reason) != (self.observed.healthy, self.observed.reason)
        now_s = time.monotonic()
        if changed or now_s - self._recorded_s >= RECORD_S:
            await self._record()
            self._recorded_s = now_s
        sentence = self.observed.reason or "healthy"
        return Pass(sentence=sentence, settled=True)

    async def _ask(self) -> CellObservation:
        reason: str | None = None
        try:
            reason = await self.client.unhealthy_reason()
            status = await self.client.status()
        except CellError as exc:
            self._reading = None
            # What the cell says of itself is closer to the cause than what we failed to read.
            return unhealthy(reason or str(exc))
        now = Reading(commands_applied=status.commands_applied, at_s=time.monotonic())
        before, self._reading = self._reading, now
        return observe_cell(status, reason, before, now)

    async def _record(self) -> None:
        seen = self.observed
        fields = {name: getattr(seen, name) for name in CellObservation.__slots__}
        try:
            await self._catalog.record_observation(self.spec.name, fields)
        except CatalogUnavailable as exc:
            # The cell was seen all the same; placement and status read it from memory.
            log.warning("observation not recorded", extra={"cell": seen, "reason": str(exc)})

    async def ensure(self) -> Pass:
        """Brings the cell's database to this release's schema and to the desired tuning."""
        try:
            self.ensured = await self._ensure()
        except (SchemaMismatch, ControlPlaneError) as exc:
            self.ensured = Pass(sentence=str(exc), settled=False)
        except psycopg.Error as exc:
            # Of a migration; its text says which statement.
            sentence = f"the schema of {self.spec.name} was not migrated: {exc}"
            self.ensured = Pass(sentence=sentence, settled=False)
        except TimeoutError:
            sentence = f"migrating {self.spec.name} took more than {MIGRATION_S_MAX:g} s"
            self.ensured = Pass(sentence=sentence, settled=False)
        return self.ensured

    async def _ensure(self) -> Pass:
        async with asyncio.timeout(MIGRATION_S_MAX):
            version = await schema.migrate(self._owner_dsn)
        scoped = any(index.tenant for index in self.spec.indexes)
        tenants = await self._catalog.organization_ids() if scoped else {}
        report = await apply_tuning(self._owner_dsn, self.spec, tenants)
        # A tenant's index waits for an event that wakes this loop, so waiting is settled.
        return Pass(
            sentence=f"schema at version {version}; {report.sentence}",
            settled=not report.failed,
            pause_s_max=TUNING_PAUSE_S_MAX,
        )


async def repeat(
    name: str,
    step: Callable[[], Awaitable[Pass]],
    settled_s: float,
    woken: asyncio.Event | None = None,
) -> None:
    """Runs `step` for ever: every `settled_s` once settled, sooner with growing pauses before.

    A sentence is logged when it differs from the one before. A step that raises is a mistake of
    ours; it is logged with its traceback and repeated like a failed one.
    """
    woken = woken or asyncio.Event()
    said = ""
    failures = 0
    while True:
        # Cleared before the pass: a wake-up during it then causes another one.
        woken.clear()
        try:
            result = await step()
        except Exception as exc:
            log.exception("pass failed", extra={"loop": name})
            result = Pass(sentence=f"{type(exc).__name__}: {exc}", settled=False)
        if result.sentence != said:
            log.info("pass", extra={"loop": name, "sentence": result.sentence})
            said = result.sentence
        failures = 0 if result.settled else failures + 1
        pause_s = settled_s if result.settled else backoff_s(failures, result.pause_s_max)
        try:
            async with asyncio.timeout(pause_s):
                await woken.wait()
        except TimeoutError:
            continue


def backoff_s(failures: int, pause_s_max: float = PAUSE_S_MAX) -> float:
    """The pause after the n-th failure in a row: 0.5 s, doubling up to a bound."""
    assert failures >= 1
    return min(pause_s_max, PAUSE_S_MIN * 2.0 ** min(failures - 1, 16))
