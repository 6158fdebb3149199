"""Log lines of every process: a JSON object with a constant message and the fields of `extra`."""

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
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "source": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # A value that JSON does not know must not cost the line it stands in.
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_to_stderr(process: str) -> None:
    """Every logger's lines from INFO on, said by `process`: a cell's name, or "router"."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonLines(process))
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)
    # They tell of every start and stop, connection and request.
    for name in ("uvicorn", "psycopg.pool", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
