"""The current routing table, what changed lately, and the waiting for something newer.

Routers long-poll it. A change made by this process is announced at once (`refresh`), one made by
another process within REREAD_S. While the catalog is away the last table is served on.
The catalog is asked for what changed, and so are routers told, where the version they have is known
here; else they get the whole table.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import msgspec

from control_plane.catalog import Catalog
from control_plane.errors import CatalogUnavailable
from control_plane.routing import RoutingChange, RoutingTable

REREAD_S = 0.5
"""How often the catalog's version is read for changes made by others."""
WAIT_MS_MAX = 30_000
"""A long poll ends after this, whatever its caller asked for."""
WAITERS_MAX = 256
"""Long polls at a time; a platform has a few routers."""
CHANGES_MAX = 256
"""A router that missed more of them gets the whole table."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a router has."""

    version: int
    """0: nothing."""
    mark: str = ""
    """Of that version; without, only a whole table can be told from what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    version: int
    content: bytes
    """A whole table, or a RoutingChange from the version known, as JSON."""


class _Step(NamedTuple):
    """A change, and the mark of the version that it is made for."""

    mark: str
    change: RoutingChange


class RoutingFeed:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._table: RoutingTable | None = None
        self._whole: News | None = None
        """The table encoded; made when it is asked for."""
        self._steps: deque[_Step] = deque(maxlen=CHANGES_MAX)
        """The last ones, each made for what the one before makes."""
        self._refreshing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False
        self._waiters = 0

    @property
    def version(self) -> int | None:
        """None until the catalog was read once."""
        return self._table.version if self._table else None

    async def refresh(self) -> None:
        """Reads the catalog's version and, if it is newer, what changed; wakes all who wait."""
        # One after another: each returns only when what was committed before it is known here.
        async with self._refreshing:
            before = self._table
            version = await self._catalog.routing_version()
            if before is not None and version <= before.version:
                return
            change = await self._catalog.routing_change(before)
            if before is not None and change.since:
                self._steps.append(_Step(before.mark, change))
            else:
                self._steps.clear()
            self._table, self._whole = change.apply_to(before), None
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

    async def newer(self, known: Known, wait_s: float) -> News | None:
        """What is above the version known, as soon as there is something; None after `wait_s`.

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
                if self._table is not None and self._table.version > known.version:
                    return self._news(self._table, known)
                if self._closed or not await _is_set(changed, deadline):
                    break
        finally:
            self._waiters -= 1
        if self._table is None:
            raise CatalogUnavailable("the routing table was not loaded yet")
        return None

    def _news(self, table: RoutingTable, known: Known) -> News:
        steps = list(self._steps)
        for place, (mark, change) in enumerate(steps):
            if (change.since, mark) == (known.version, known.mark):
                changes = (step.change for step in steps[place:])
                told = reduce(RoutingChange.followed_by, changes)
                return News(version=told.version, content=msgspec.json.encode(told))
        if self._whole is None:
            content = msgspec.json.encode(table)
            self._whole = News(version=table.version, content=content)
        return self._whole

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
