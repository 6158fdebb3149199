"""How a run of the platform tells its story: log lines, and a line protocol to a waiting parent.

Log lines are JSON, one per event. The parent of a detached supervisor reads one JSON object per
line from a pipe: progress, then `ready` or `failed`; the end of the pipe without either means that
the supervisor died.
"""

import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from infra.local.platform import Ready
from infra.local.supervisor import open_log

LOGGER: Final = "cloister.supervisor"
STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, message, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in STANDARD_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def open_supervisor_log(file: Path, *, show: bool) -> logging.Logger:
    """The supervisor's log, in the file; with `show`, troubles are on standard error too."""
    log = logging.getLogger(LOGGER)
    log.setLevel(logging.INFO)
    log.propagate = False
    # Opened once for its side effects: the private mode and the bound on its size.
    open_log(file).close()
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    if show:
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.WARNING)
        # The failure that ends the command is explained by the command itself.
        shown.addFilter(lambda record: record.levelno < logging.CRITICAL)
        handlers.append(shown)
    for handler in handlers:
        handler.setFormatter(JsonLines())
        log.addHandler(handler)
    return log


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line to the parent; exactly one field is set."""

    progress: str | None = None
    ready: Ready | None = None
    failed: str | None = None


class ReportPipe:
    """The supervisor's end. A parent that has gone away is no reason to stop."""

    def __init__(self, descriptor: int) -> None:
        # Children of the supervisor must not hold the pipe: its end tells of the supervisor's.
        os.set_inheritable(descriptor, False)
        self._file: IO[bytes] | None = os.fdopen(descriptor, "wb", buffering=0)

    def send(self, report: Report) -> None:
        if self._file is None:
            return
        with suppress(BrokenPipeError):
            self._file.write(msgspec.json.encode(report) + b"\n")
        if report.progress is None:
            self._file.close()
            self._file = None
