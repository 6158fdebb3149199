"""The current routing table, encoded once per version, and the waiting for a newer one.

Routers long-poll it. A change made by this process is announced at once (`refresh`), one made by
another process within REREAD_S. While the catalog is away the last table is served on.
"""

import asyncio
import logging
from dataclasses import dataclass

import msgspec

from control_plane.catalog import Catalog
from control_plane.errors import CatalogUnavailable

REREAD_S = 0.5
"""How often the catalog's version is read for changes made by others."""
WAIT_MS_MAX = 30_000
"""A long poll ends after this, whatever its caller asked for."""
WAITERS_MAX = 256
"""Long polls at a time; a platform has a few routers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTable:
    version: int
    content: bytes
    """The table as JSON."""


class RoutingFeed:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._current: EncodedTable | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._waiters = 0

    @property
    def version(self) -> int | None:
        """None until the catalog was read once."""
        return self._current.version if self._current else None

    async def refresh(self) -> None:
        """Reads the catalog's version and, if it is newer, the table; wakes all who wait."""
        version = await self._catalog.routing_version()
        if self._current is not None and version <= self._current.version:
            return
        table = await self._catalog.routing_table()
        # Again, because another refresh may have stored a newer table while this one was read.
        if self._current is None or table.version > self._current.version:
            content = msgspec.json.encode(table)
            self._current = EncodedTable(version=table.version, content=content)
            self._announce()

    async def watch(self) -> None:
        """Refreshes for ever, until cancelled."""
        away = False
        while True:
            try:
                await self.refresh()
                away = False
            except CatalogUnavailable as exc:
                # Once, not every half second: whoever reads the log needs the change only.
                if not away:
                    log.warning("routing table not refreshed", extra={"reason": str(exc)})
                away = True
            await asyncio.sleep(REREAD_S)

    async def newer(self, after: int, wait_s: float) -> EncodedTable | None:
        """A table of a version above `after`, as soon as there is one; None after `wait_s`.

        Returns None at once when the process is stopping, when too many wait already, and, with
        nothing loaded, raises CatalogUnavailable after `wait_s`.
        """
        deadline = asyncio.get_running_loop().time() + min(wait_s, WAIT_MS_MAX / 1000)
        if self._waiters >= WAITERS_MAX:
            deadline = 0.0
        self._waiters += 1
        try:
            while True:
                # Taken before the comparison: a change in between then sets this very event.
                changed = self._changed
                if self._current is not None and self._current.version > after:
                    return self._current
                if self._closed or not await _is_set(changed, deadline):
                    break
        finally:
            self._waiters -= 1
        if self._current is None:
            raise CatalogUnavailable("the routing table was not loaded yet")
        return None

    def close(self) -> None:
        """Ends every long poll now, and every later one at once."""
        self._closed = True
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _is_set(event: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            await event.wait()
    except TimeoutError:
        return False
    return True
