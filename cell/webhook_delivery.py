"""Delivering webhooks: one line per endpoint, in order, at least once, over crashes and moves.

A line reads its endpoint's next events from the index, sends one after another, and has the
sequencer record how far it has come: at once where something failed, else at most once a second.
An event that is not taken is sent again after a pause that doubles, and holds up those behind it,
until it is given up as a dead letter. The lines are brought in accordance with the endpoints in
the database every half minute, and at once when a request changes one.
"""

import asyncio
import logging
import random
import time
from collections.abc import Iterable
from typing import Final

import psycopg

from cell.errors import ApiError, NotApplied, NotFound, Unavailable
from cell.event_reading import FoundEvent, Wanted, find_events
from cell.events import EventPlace
from cell.ledger.commands import RecordWebhookDelivery
from cell.ledger.model import TenantId, WebhookEndpoint
from cell.postgres import connection_string, one_line
from cell.reads import Reader
from cell.rows import columns_of, read_as_model, row_from
from cell.sequencer import Sequencer
from cell.waiting import wait_until_set
from cell.webhook_sending import WebhookSender
from cell.wire import Verdict

SENDING_MAX: Final = 32
"""Webhooks on their way at once, over all endpoints of the cell."""

PAGE: Final = 32
"""Events a line holds in memory."""

LINES_MAX: Final = 10_000
RECORD_S: Final = 1.0
"""What a crash makes a line send again is at most what it sent in this time."""

PAUSE_S_MAX: Final = 600.0
FAILING_US_MAX: Final = 24 * 3600 * 1_000_000
"""An event that was not taken for a day is given up, however few attempts that were."""

RECONCILE_S: Final = 30.0
RETRY_S: Final = 1.0

log = logging.getLogger("cell.webhooks")


class Deliverer:
    """All lines of the cell; `run` in a task of its own."""

    def __init__(
        self, writer_dsn: str, reader: Reader, sequencer: Sequencer, sender: WebhookSender
    ) -> None:
        self._dsn = connection_string(writer_dsn, "webhooks")
        self.reader = reader
        self.sequencer = sequencer
        self.sender = sender
        self.sending = asyncio.Semaphore(SENDING_MAX)
        self._lines: dict[str, _Line] = {}
        """By endpoint."""
        self._lines_of: dict[TenantId, list[_Line]] = {}
        self._look = asyncio.Event()

    def look_again(self) -> None:
        """A request has changed an endpoint."""
        self._look.set()

    def on_projected(self, tenant_ids: Iterable[TenantId]) -> None:
        """There may be new events of these tenants."""
        if self._lines_of:
            for tenant_id in tenant_ids:
                for line in self._lines_of.get(tenant_id, ()):
                    line.news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                self._look.clear()
                try:
                    self._reconcile(await self._endpoints())
                except psycopg.Error as error:
                    log.warning("no endpoints", extra={"error": one_line(error)})
                    await asyncio.sleep(RETRY_S)
                    continue
                await wait_until_set(self._look, RECONCILE_S)
        finally:
            for line in self._lines.values():
                line.stop()

    async def _endpoints(self) -> list[WebhookEndpoint]:
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
            await connection.execute("SET ROLE cloister_projector")
            read_as_model(connection)
            cursor = await connection.execute(_ENDPOINTS, (LINES_MAX,))
            return [row_from(WebhookEndpoint, row) for row in await cursor.fetchall()]

    def _reconcile(self, endpoints: list[WebhookEndpoint]) -> None:
        """A line for each endpoint, and no other."""
        wanted = {endpoint.id: endpoint for endpoint in endpoints}
        for id in [id for id, line in self._lines.items() if id not in wanted or line.is_over]:
            self._lines.pop(id).stop()
        for id, endpoint in wanted.items():
            line = self._lines.get(id)
            if line is None:
                self._lines[id] = _Line(self, endpoint)
            elif line.url != endpoint.url:
                line.url = endpoint.url
                line.changed.set()
        self._lines_of = {}
        for line in self._lines.values():
            self._lines_of.setdefault(line.tenant_id, []).append(line)


_ENDPOINTS: Final = f"""
SELECT {columns_of(WebhookEndpoint, "e")}
FROM webhook_endpoints e JOIN tenant_heads h USING (tenant_id)
WHERE e.discarded_at_us IS NULL AND h.state = 'owned' ORDER BY e.id LIMIT %s
"""


class _Line:
    """The deliveries to one endpoint, in a task of their own."""

    def __init__(self, deliverer: Deliverer, endpoint: WebhookEndpoint) -> None:
        self.tenant_id = endpoint.tenant_id
        self.url = endpoint.url
        self.news = asyncio.Event()
        self.changed = asyncio.Event()
        """Set when the URL has changed: the next attempt need not wait."""
        self._deliverer = deliverer
        self._id = endpoint.id
        self._place = EventPlace(endpoint.delivered_seq, endpoint.delivered_ordinal)
        self._at_us = endpoint.delivered_at_us
        self._attempts = endpoint.attempts
        self._failing_since_us = endpoint.failing_since_us
        self._last_error = endpoint.last_error
        self._is_recorded = True
        self._recorded_at_s = 0.0
        self._task = asyncio.create_task(self._run(), name="deliver webhooks")

    @property
    def is_over(self) -> bool:
        """The endpoint is not the cell's any more, as far as the line could tell."""
        return self._task.done()

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._deliver_all()
            except _Over:
                return
            except Unavailable:
                pass
            except Exception:
                log.exception("delivering fails", extra={"tenant": self.tenant_id})
            await asyncio.sleep(RETRY_S)

    async def _deliver_all(self) -> None:
        while True:
            self.news.clear()
            wanted = Wanted(from_us=self._at_us, after=self._place, newest_first=False)
            found = await find_events(self._deliverer.reader, self.tenant_id, wanted, PAGE)
            for event in found:
                await self._deliver(event)
                if time.monotonic() - self._recorded_at_s > RECORD_S:
                    await self._record()
            if not found:
                await self._record()
                await self.news.wait()

    async def _deliver(self, found: FoundEvent) -> None:
        """Send until it is taken or given up."""
        deliverer, policy = self._deliverer, self._deliverer.sender.policy
        while True:
            self.changed.clear()
            async with deliverer.sending:
                error = await deliverer.sender.send(self.tenant_id, self._id, self.url, found)
            if error is None:
                self._advance(found)
                return
            now_us = time.time_ns() // 1000
            self._attempts += 1
            self._failing_since_us = self._failing_since_us or now_us
            self._last_error, self._is_recorded = error, False
            if self._attempts == 1:
                log.info("webhook not taken", extra=self._fields(error))
            is_due = now_us - self._failing_since_us >= FAILING_US_MAX
            if self._attempts >= policy.attempts_max or is_due:
                await self._give_up(found)
                return
            await self._record()
            await wait_until_set(self.changed, _pause_s(policy.retry_s, self._attempts))

    def _advance(self, found: FoundEvent) -> None:
        self._place, self._at_us = found.place, found.record.at_us
        self._attempts, self._failing_since_us = 0, None
        self._last_error, self._is_recorded = None, False

    async def _give_up(self, found: FoundEvent) -> None:
        attempts, error = self._attempts, self._last_error
        log.warning("webhook given up", extra=self._fields(error))
        self._advance(found)
        self._attempts, self._last_error = attempts, error
        # Forgotten, it would be lost; so it is recorded before the line goes on.
        while True:
            if await self._record(found.id):
                break
            await asyncio.sleep(RETRY_S)
        self._attempts = 0

    def _fields(self, error: str | None) -> dict[str, str | None]:
        return {"tenant": self.tenant_id, "endpoint": self._id, "error": error}

    async def _record(self, dead_event_id: str | None = None) -> bool:
        """Have it recorded how far the line has come; False where it could not be now."""
        if self._is_recorded and dead_event_id is None:
            return True
        command = RecordWebhookDelivery(
            id=self._id,
            delivered_seq=self._place.seq,
            delivered_ordinal=self._place.ordinal,
            delivered_at_us=self._at_us,
            attempts=self._attempts,
            failing_since_us=self._failing_since_us,
            last_error=self._last_error,
            dead_event_id=dead_event_id,
        )
        self._recorded_at_s = time.monotonic()
        try:
            await self._deliverer.sequencer.submit(self.tenant_id, command, None)
        except NotFound as exc:
            raise _Over from exc
        except NotApplied as exc:
            if exc.verdict in (Verdict.MOVED, Verdict.NOT_OWNER):
                raise _Over from exc
            return False
        except ApiError:
            return False
        self._is_recorded = True
        return True


class _Over(Exception):
    """The endpoint is deleted, or its tenant is another cell's."""


def _pause_s(first_s: float, attempts: int) -> float:
    """Doubling, with jitter: endpoints that failed together do not come back together."""
    pause_s = min(first_s * 2.0 ** min(attempts - 1, 30), PAUSE_S_MAX)
    return pause_s * random.uniform(0.5, 1.0)
