"""How a run of the platform tells its story: log lines, and a line protocol to a waiting parent.

Log lines are JSON, one per event. The parent of a detached supervisor reads one JSON object per
line from a pipe: progress, then `ready` or `failed`; the end of the pipe without either means that
the supervisor died.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from cell.logs import JsonLines
from infra.local.platform import Ready
from infra.local.supervisor import open_log

LOGGER: Final = "cloister.supervisor"


def open_supervisor_log(file: Path, *, show: bool) -> logging.Logger:
    """The supervisor's log, in the file; with `show`, troubles are on standard error too."""
    log = logging.getLogger(LOGGER)
    log.setLevel(logging.INFO)
    log.propagate = False
    # Opened once for its side effects: the private mode and the bound on its size.
    open_log(file).close()
    handlers: list[logging.Handler] = [LogFile(file, encoding="utf-8")]
    if show:
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.WARNING)
        # The failure that ends the command is explained by the command itself.
        shown.addFilter(lambda record: record.levelno < logging.CRITICAL)
        handlers.append(shown)
    for handler in handlers:
        handler.setFormatter(JsonLines("supervisor"))
        log.addHandler(handler)
    return log


class LogFile(logging.FileHandler):
    """A log that goes without a line where the disk is full: that is explained by the failure."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


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
