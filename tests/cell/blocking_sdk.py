"""The asynchronous SDK, called like the other one: a scenario is written once and driven by both.

Every request is a coroutine of the unmodified `AsyncModernTreasury`, run on a loop in a thread of
its own, from whatever thread asks for it.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
from cell_process import OnRequest
from modern_treasury import AsyncModernTreasury

Run = Callable[[Awaitable[Any]], Any]


class BlockingClient:
    """The client itself; leaving its `with` block closes it, and ends the thread."""

    def __init__(self, timeout_s: float, on_request: OnRequest | None, **options: Any) -> None:
        async def tell(request: httpx.Request) -> None:
            if on_request is not None:
                on_request(request)

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        http_client = httpx.AsyncClient(
            trust_env=False, verify=False, timeout=timeout_s, event_hooks={"request": [tell]}
        )
        self._client = AsyncModernTreasury(http_client=http_client, **options)

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def __getattr__(self, name: str) -> Any:
        return _blocking(getattr(self._client, name), self._run)

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _blocking(value: Any, run: Run) -> Any:
    if inspect.isawaitable(value):
        # A page can be awaited, and gone through beyond its end.
        found = run(value)
        return _BlockingPage(found, run) if hasattr(found, "get_next_page") else found
    if inspect.isroutine(value):
        return lambda *given, **named: _blocking(value(*given, **named), run)
    package = type(value).__module__.partition(".")[0]
    if package == "modern_treasury" and "Async" in type(value).__name__:
        return _BlockingPart(value, run)
    return value


class _BlockingPart:
    """A resource, what gives its raw answers, or the client with other options."""

    def __init__(self, part: Any, run: Run) -> None:
        self._part, self._run = part, run

    def __getattr__(self, name: str) -> Any:
        return _blocking(getattr(self._part, name), self._run)


class _BlockingPage(_BlockingPart):
    def __iter__(self) -> Iterator[Any]:
        page = self._part
        while True:
            yield from page.items
            if not page.has_next_page():
                return
            page = self._run(page.get_next_page())
