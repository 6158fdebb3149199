"""`python -m cell`: the cell, configured by its environment alone.

Exit codes: 0 after SIGTERM, 2 for a setting that is missing or impossible, 3 when a later sequencer
took the database over, 4 when the schema is newer than this code.
"""

import logging
import os
import sys
from typing import Final

import uvloop

from cell.app import serve
from cell.collector import calm_collector
from cell.errors import SchemaMismatch, SettingsInvalid, WriterFenced
from cell.logs import log_to_stderr
from cell.settings import Settings

INVALID_SETTINGS: Final = 2
FENCED: Final = 3
NEWER_SCHEMA: Final = 4

log = logging.getLogger("cell")


def main() -> int:
    try:
        settings = Settings.from_environment(os.environ)
        log_to_stderr(settings.name)
        calm_collector()
        uvloop.run(serve(settings))
    except SettingsInvalid as exc:
        print(f"cell: {exc}", file=sys.stderr)
        return INVALID_SETTINGS
    except WriterFenced as exc:
        log.critical("fenced: another sequencer owns this database", extra={"reason": str(exc)})
        return FENCED
    except SchemaMismatch as exc:
        log.critical("the schema is newer than this release", extra={"reason": str(exc)})
        return NEWER_SCHEMA
    return 0


if __name__ == "__main__":
    sys.exit(main())
