"""Waiting with an end."""

import asyncio
import contextlib


async def wait_until_set(event: asyncio.Event, wait_s: float) -> None:
    """Until the event is set or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()
