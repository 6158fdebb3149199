"""The reject file: every row that was not loaded, with its line and the reason, as CSV.

The column `row` holds the record exactly as it stood in the data file, in the data file's own
encoding, so that it can be mended and loaded again.
"""

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from control_plane.load.errors import SourceUnreadable

HEADER = ("line", "reason", "row")


class RejectFile:
    """Written as rejects come; there is none at the end if nothing was rejected.

    Replaces the reject file of an earlier run, and refuses to replace anything else.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self.path = path
        self.count = 0
        self._encoding = encoding
        self._file: TextIO | None = None
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        try:
            with open(self.path, encoding=self._encoding, errors="surrogateescape") as file:
                first = file.readline(100)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise SourceUnreadable(f"{self.path} cannot be read: {exc.strerror}") from exc
        if first.strip() != ",".join(HEADER):
            raise SourceUnreadable(
                f"{self.path} exists and is no reject file; move it away or name another one"
            )
        with suppress(FileNotFoundError):
            self.path.unlink()

    def add(self, line: int, reason: str, raw: str) -> None:
        """Writes one row through to the file. Raises SourceUnreadable if that fails."""
        readable = reason.encode(self._encoding, "backslashreplace").decode(self._encoding)
        try:
            if self._file is None:
                self._file = self._open()
            csv.writer(self._file).writerow((line, readable, raw))
            self._file.flush()
        except OSError as exc:
            raise SourceUnreadable(f"{self.path} cannot be written: {exc.strerror}") from exc
        self.count += 1

    def _open(self) -> TextIO:
        file = io.TextIOWrapper(
            open(self.path, "wb"),  # noqa: SIM115 (kept open for the whole load)
            encoding=self._encoding,
            errors="surrogateescape",
            newline="",
        )
        csv.writer(file).writerow(HEADER)
        return file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
