"""Ids: UUIDv7 of the microsecond at which their row was created, with room for a shard number.

Layout: 48 bits of milliseconds, 12 bits for the microsecond within, 12 bits of shard number (0
today), 50 bits of which the last 44 are random. A tenant's times only ever grow (see `batch`), and
so do its ids: a range of creation times is a range of ids. One id is drawn per command; the ids of
the rows the command creates count up from it, so that it can be executed again with the same ids.
"""

import os
from collections.abc import Callable
from typing import Final

SHARD: Final = 0
_RANDOM_DIGITS: Final = 11
"""The digit before them is 0: ids that count up from an id never come round to a smaller one."""

_POOL_IDS: Final = 256


class IdSource:
    """Draws ids; not for use by several threads."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._pool = ""
        self._taken = 0

    def draw(self, at_us: int) -> str:
        """An id of that microsecond: above all of earlier ones, below all of later ones."""
        if self._taken >= len(self._pool):
            bytes_wanted = _RANDOM_DIGITS * _POOL_IDS // 2
            self._pool, self._taken = self._random_bytes(bytes_wanted).hex(), 0
        node = self._pool[self._taken : self._taken + _RANDOM_DIGITS]
        self._taken += _RANDOM_DIGITS
        return f"{_prefix(at_us)}-8{SHARD:03x}-0{node}"


def first_id(at_us: int) -> str:
    """Not above any id of that microsecond, and above every id of an earlier one."""
    return f"{_prefix(max(at_us, 0))}-8000-000000000000"


def _prefix(at_us: int) -> str:
    ms, us = divmod(at_us, 1000)
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{us:03x}"


def derive_id(id_base: str, ordinal: int) -> str:
    """The id of a command's row number `ordinal`; number 0 has the base itself."""
    return f"{id_base[:24]}{int(id_base[24:], 16) + ordinal:012x}"
