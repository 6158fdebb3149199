"""`python -m router`: the router, configured by its environment alone."""

import os
import sys

import uvloop

from router.app import Router, raise_descriptor_limit
from router.errors import ListenFailed, SettingsError
from router.logs import log_to_stderr
from router.settings import Settings


def main() -> int:
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as exc:
        print(f"router: {exc}", file=sys.stderr)
        return 2
    log_to_stderr()
    raise_descriptor_limit()
    try:
        uvloop.run(_serve(settings))
    except ListenFailed as exc:
        print(f"router: {exc}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    await Router(settings).serve()


if __name__ == "__main__":
    sys.exit(main())
