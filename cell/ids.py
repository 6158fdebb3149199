"""Ids: UUIDv7, ordered by creation, with room for a shard number.

Layout: 48 bits of milliseconds, a 12-bit counter within the millisecond, 12 bits of shard number
(0 today), 50 bits of which the last 44 are random. One id is drawn per command; the ids of the rows
the command creates count up from it, so that it can be executed again with the same ids.
"""

import os
from collections.abc import Callable
from typing import Final

SHARD: Final = 0
_COUNTER_MAX: Final = 0xFFF
_RANDOM_DIGITS: Final = 11
"""The digit before them is 0: ids that count up from an id never come round to a smaller one."""

_POOL_IDS: Final = 256


class IdSource:
    """Draws ids that only ever grow; not for use by several threads."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._pool = ""
        self._taken = 0
        self._ms = 0
        self._counter = 0

    def draw(self, at_us: int) -> str:
        """An id above every one drawn before, at or after the time given."""
        ms = at_us // 1000
        if ms > self._ms:
            self._ms, self._counter = ms, 0
        elif self._counter < _COUNTER_MAX:
            self._counter += 1
        else:
            # The millisecond is used up (or the clock stands still): borrow the next one.
            self._ms, self._counter = self._ms + 1, 0
        if self._taken >= len(self._pool):
            bytes_wanted = _RANDOM_DIGITS * _POOL_IDS // 2
            self._pool, self._taken = self._random_bytes(bytes_wanted).hex(), 0
        node = self._pool[self._taken : self._taken + _RANDOM_DIGITS]
        self._taken += _RANDOM_DIGITS
        ms = self._ms
        return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{self._counter:03x}-8{SHARD:03x}-0{node}"


def first_id(at_us: int) -> str:
    """Not above any id that was drawn at that time or later."""
    ms = max(at_us // 1000, 0)
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-000000000000"


def derive_id(id_base: str, ordinal: int) -> str:
    """The id of a command's row number `ordinal`; number 0 has the base itself."""
    return f"{id_base[:24]}{int(id_base[24:], 16) + ordinal:012x}"
