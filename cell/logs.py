"""One JSON object per line on stderr: time, level, the cell, a constant message, and its fields."""

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
"""What every record has; the rest came by `extra`."""


class JsonLines(logging.Formatter):
    def __init__(self, cell: str) -> None:
        super().__init__()
        self._cell = cell

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "cell": self._cell,
            "source": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # A value that JSON does not know must not cost the line it stands in.
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_to_stderr(cell: str) -> None:
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonLines(cell))
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)
    # uvicorn tells of every start and stop, psycopg_pool of every connection.
    for name in ("uvicorn", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.WARNING)
