"""Follows the control plane's routing table by long polls; the request path never waits for it.

Keeps the disk copy, and knows whether the table is fresh: the last poll worked, and not long ago.
A control plane that is away, or answers nonsense, or offers an older table changes nothing but
that; it is asked again after a growing pause.
"""

import asyncio
import logging
import random
from typing import Final

import httpx
import msgspec

from router.errors import RouterError
from router.routing_table import Routes
from router.settings import Settings
from router.table_file import TableFile, parse_change

log = logging.getLogger(__name__)

ANSWER_MARGIN_S: Final = 5.0
"""What a held poll may take beyond the time it asked to be held."""
CONNECT_S_MAX: Final = 2.0
PAUSE_S_MIN: Final = 0.1
PAUSE_S_MAX: Final = 5.0
"""Between failed polls, doubling, evenly random below: routers must not return all at once."""
POLL_S_MIN: Final = 0.5
"""Between the beginnings of two polls that bring nothing."""
REFRESH_S_MAX: Final = 1.0
REFRESH_PAUSE_S: Final = 0.2
"""Between refreshes: what cells say about moved tenants must not become load on the control
plane."""


class PollFailed(RouterError):
    """The control plane gave no table we may use, nor said that there is none newer."""


class TableFollower:
    def __init__(self, settings: Settings, routes: Routes) -> None:
        self._settings = settings
        self._routes = routes
        self._file = TableFile(settings.table_file)
        self._client = httpx.AsyncClient(
            base_url=settings.control_url,
            headers={"authorization": f"Bearer {settings.token}"},
            timeout=httpx.Timeout(
                settings.poll_wait_ms / 1000 + ANSWER_MARGIN_S, connect=CONNECT_S_MAX
            ),
            # Only what the settings say: no proxy or netrc of whoever started the process.
            trust_env=False,
        )
        self._confirmed_s: float | None = None
        """When the control plane last answered usefully, on the loop's clock."""
        self._working = False
        """The last poll worked."""
        self._whole: bytes | None = None
        """The whole table adopted last, until it is on its way to the disk."""
        self._changes: list[bytes] = []
        """Adopted after it, likewise."""
        self._storing: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_s = float("-inf")
        self.polls: dict[str, int] = {"newer": 0, "unchanged": 0, "failed": 0}

    def start_from_disk(self) -> None:
        """Adopt the disk copy, if there is one."""
        whole, complaints = self._file.load()
        for complaint in complaints:
            log.error("routing table copy unusable", extra={"reason": complaint})
        if whole is not None:
            refusal = self._routes.adopt(whole)
            if refusal is not None:
                log.error("routing table copy refused", extra={"reason": refusal})

    @property
    def age_s(self) -> float | None:
        """Since the control plane last confirmed the table; None if it never did."""
        if self._confirmed_s is None:
            return None
        return asyncio.get_running_loop().time() - self._confirmed_s

    def sweep(self) -> None:
        """Let freshness run out."""
        age_s = self.age_s
        self._routes.is_fresh = (
            self._working and age_s is not None and age_s * 1000 <= self._settings.fresh_ms_max
        )

    async def run(self) -> None:
        """Poll until cancelled."""
        pause_s = PAUSE_S_MIN
        while True:
            try:
                # The first poll is not held: a control plane without news is to count as
                # answering at once, not after the time a poll may be held.
                wait_ms = self._settings.poll_wait_ms if self._working else 0
                began_s = asyncio.get_running_loop().time()
                is_news = await self._poll(wait_ms)
                pause_s = PAUSE_S_MIN
                if not is_news and wait_ms:
                    # A control plane that is stopping, or has too many polls, does not hold them.
                    await asyncio.sleep(began_s + POLL_S_MIN - asyncio.get_running_loop().time())
            except (httpx.HTTPError, msgspec.MsgspecError, PollFailed) as exc:
                self._failed(exc)
                await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(pause_s * 2, PAUSE_S_MAX)

    def _failed(self, exc: Exception) -> None:
        self.polls["failed"] += 1
        if self._working or self.polls["failed"] == 1:
            log.warning("control plane away", extra={"reason": str(exc) or repr(exc)})
        self._working = False
        self.sweep()

    async def _poll(self, wait_ms: int) -> bool:
        """Ask for a table newer than ours and adopt it; whether there was one.

        Raises httpx.HTTPError, msgspec.MsgspecError, PollFailed.
        """
        known = self._routes.table
        after = None if known is None else known.version
        params: dict[str, int | str] = {"wait_ms": wait_ms}
        if known is not None:
            params |= {"after": known.version, "mark": known.mark}
        answer = await self._client.get("/v1/routing-table", params=params)
        is_news = False
        if answer.status_code == 200:
            is_news = self._adopt(answer.content, after)
        elif answer.status_code != 304:
            raise PollFailed(f"the control plane answered {answer.status_code}")
        self.polls["newer" if is_news else "unchanged"] += 1
        self._confirm()
        return is_news

    def _adopt(self, body: bytes, after: int | None) -> bool:
        change, table = parse_change(body), self._routes.table
        if after is not None and table is not None and after <= change.version <= table.version:
            # A refresh overtook the poll that was held, or the other way round.
            return False
        if not change.fits(table):
            raise PollFailed(f"what changed since version {change.since} is for another table")
        refusal = self._routes.adopt(change)
        if refusal is not None:
            raise PollFailed(f"routing table refused: {refusal}")
        # The next poll begins at once: the next move's news must not wait for the disk.
        if change.since:
            self._changes.append(body)
        else:
            self._whole, self._changes = body, []
        if self._storing is None:
            self._storing = asyncio.create_task(self._store(), name="store routing table")
        return True

    def _confirm(self) -> None:
        if not self._working:
            log.info("control plane answers", extra={"version": self._routes.version})
        self._working = True
        self._confirmed_s = asyncio.get_running_loop().time()
        self.sweep()

    async def _store(self) -> None:
        """Until the disk copy is the table in memory."""
        try:
            while self._whole is not None or self._changes:
                whole, changes = self._whole, self._changes
                self._whole, self._changes = None, []
                if whole is None and not self._file.is_appendable:
                    # The table in memory has these changes in it.
                    whole, changes = msgspec.json.encode(self._routes.table), []
                await asyncio.to_thread(self._file.store, whole, changes)
        except OSError as exc:
            # Served from memory all the same; only a restart while the control plane is away
            # would have to make do with the older copy.
            log.error("routing table not stored", extra={"reason": str(exc)})
        finally:
            self._storing = None

    def ask(self) -> None:
        """Begin to fetch a newer table, because a cell said that ours is old.

        Waits for no poll; but one at a time, and not more often than each REFRESH_PAUSE_S: whoever
        still needs it asks again.
        """
        now_s = asyncio.get_running_loop().time()
        if self._refreshing is None and now_s - self._refreshed_s >= REFRESH_PAUSE_S:
            self._refreshed_s = now_s
            self._refreshing = asyncio.create_task(self._refresh(), name="refresh routing table")

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(REFRESH_S_MAX):
                await self._poll(0)
        except (httpx.HTTPError, msgspec.MsgspecError, PollFailed, TimeoutError) as exc:
            log.info("refresh failed", extra={"reason": str(exc) or repr(exc)})
        finally:
            self._refreshing = None

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        if self._storing is not None:
            await self._storing
        await self._client.aclose()
