"""Deletes idempotency keys past their time, beside the sequencer, a bounded number at a time."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import psycopg

from cell.store import Store

KEY_LIFETIME_US: Final = 24 * 3600 * 1_000_000
"""An idempotency key answers repeats for 24 hours (the hosted API's promise)."""

EXPIRE_INTERVAL_S: Final = 30.0
EXPIRE_ROWS_MAX: Final = 200_000


async def expire_keys(store: Store, now_us: Callable[[], int]) -> None:
    """Until cancelled; what fails is tried again the next time."""
    while True:
        await asyncio.sleep(EXPIRE_INTERVAL_S)
        with contextlib.suppress(psycopg.Error):
            await store.expire_keys(now_us() - KEY_LIFETIME_US, EXPIRE_ROWS_MAX)
