"""`python -m router`: the router, configured by its environment alone."""

import asyncio
import os
import signal
import sys

import uvloop

from cell.logs import log_to_stderr
from router.app import Router, raise_descriptor_limit
from router.errors import ListenFailed, SettingsError
from router.settings import Settings


def main() -> int:
    try:
        router = Router(Settings.from_environment(os.environ))
    except SettingsError as exc:
        print(f"router: {exc}", file=sys.stderr)
        return 2
    log_to_stderr("router")
    raise_descriptor_limit()
    try:
        router.listen()
    except ListenFailed as exc:
        print(f"router: {exc}", file=sys.stderr)
        return 1
    uvloop.run(_serve(router))
    return 0


async def _serve(router: Router) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await router.serve(stop)


if __name__ == "__main__":
    sys.exit(main())
