"""Admission: the bounded queue before the sequencer, fair across tenants.

A tenant that sends much waits behind itself: each take goes round the tenants that wait. Refusing
happens before anything is queued, so that "overloaded" is a promise that nothing was done.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from cell.errors import NotApplied
from cell.ledger.model import TenantId
from cell.wire import Verdict

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out within a tenant; round-robin across tenants.

    `weigh` says how much work an item is, if that differs; one that `is_alone` is taken by itself.
    """

    def __init__(
        self,
        *,
        items_max: int,
        items_per_tenant_max: int,
        weigh: Callable[[Item], int] = lambda item: 1,
        is_alone: Callable[[Item], bool] = lambda item: False,
    ) -> None:
        self._items_max = items_max
        self._items_per_tenant_max = items_per_tenant_max
        self._weigh = weigh
        self._is_alone = is_alone
        self._waiting: dict[TenantId, deque[Item]] = {}
        self._turns: deque[TenantId] = deque()
        self._size = 0
        self._wanted = 1
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return self._size

    def put(self, tenant_id: TenantId, item: Item) -> None:
        """Queue an item, or raise NotApplied(overloaded)."""
        if self._size >= self._items_max:
            raise NotApplied(Verdict.OVERLOADED, "the cell's queue is full; try again shortly")
        queue = self._waiting.get(tenant_id)
        if queue is None:
            queue = self._waiting[tenant_id] = deque()
            self._turns.append(tenant_id)
        elif len(queue) >= self._items_per_tenant_max:
            raise NotApplied(Verdict.OVERLOADED, "the tenant's queue is full; try again shortly")
        queue.append(item)
        self._size += 1
        if self._size >= self._wanted:
            self._changed.set()

    def take(self, items_max: int, weight_max: int | None = None) -> list[Item]:
        """At most so many of the items that wait, in turns; possibly none.

        No more are taken once they weigh as much as is given.
        """
        taken: list[Item] = []
        held_back: list[TenantId] = []
        weight_left = sys.maxsize if weight_max is None else weight_max
        while self._turns and len(taken) < items_max and weight_left > 0:
            # The share is the same for a whole round: worked out anew for each, the first would
            # get more than the last.
            share = max(1, (items_max - len(taken)) // len(self._turns))
            weight_share = weight_left // len(self._turns)
            for _ in range(min(len(self._turns), items_max - len(taken))):
                tenant_id = self._turns.popleft()
                queue = self._waiting[tenant_id]
                if self._is_alone(queue[0]):
                    if taken:
                        held_back.append(tenant_id)
                        continue
                    taken.append(queue.popleft())
                    weight_left = 0
                else:
                    weight_left -= self._take_share(queue, share, weight_share, taken)
                if queue:
                    self._turns.append(tenant_id)
                else:
                    del self._waiting[tenant_id]
                if weight_left <= 0:
                    break
        # Theirs is the next turn, or a busy tenant would keep them waiting.
        self._turns.extendleft(reversed(held_back))
        self._size -= len(taken)
        return taken

    def _take_share(
        self, queue: deque[Item], items_max: int, weight_max: int, taken: list[Item]
    ) -> int:
        """Move a tenant's share, at least one item, to those taken; what it weighs."""
        weight = 0
        for _ in range(min(items_max, len(queue))):
            if self._is_alone(queue[0]):
                break
            item = queue.popleft()
            taken.append(item)
            weight += self._weigh(item)
            if weight >= weight_max:
                break
        return weight

    def remove(self, is_unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out, wherever they stand, the items for which it is true."""
        removed: list[Item] = []
        for tenant_id, queue in list(self._waiting.items()):
            kept = deque(item for item in queue if not is_unwanted(item))
            if len(kept) == len(queue):
                continue
            removed.extend(item for item in queue if is_unwanted(item))
            if kept:
                self._waiting[tenant_id] = kept
            else:
                del self._waiting[tenant_id]
                self._turns.remove(tenant_id)
        self._size -= len(removed)
        return removed

    async def reach(self, items: int) -> None:
        """Return once so many items wait, or at the next `wake`, whatever it is for.

        For one task only. It is not woken for each item: that would cost as much as queueing it.
        """
        if self._size >= items:
            return
        self._wanted = items
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """Let whoever waits for a change look again."""
        self._changed.set()
