"""Reads the data file as a stream of records, each with its raw text and place.

A record is usually one line; a quoted value may go over several. One malformed record is returned
as such and costs only itself: an unclosed quote does not swallow the rest of the file. Bytes that
the encoding does not know come through as lone surrogates, so that a rejected row can be written
back byte by byte.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from control_plane.load.errors import RowRejected, SourceUnreadable
from control_plane.load.mapping import FileFormat

LINE_CHARS_MAX = 1 << 20
RECORD_LINES_MAX = 100
"""A quote that is still open after so many lines was never meant to be one."""

_QUOTE_OPEN = "unexpected end of data"
"""What the csv module says of text that ends inside quotes."""

_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    first_line: int
    """Counted from 1, as are all lines."""
    last_line: int
    raw: str
    """The record as it stands in the file, without its last line end."""
    values: tuple[str, ...] | None
    """None: malformed."""
    reason: str
    """Why it is malformed."""
    prefix: bytes
    """SHA-256 of the file's text up to and with this record."""
    file_bytes: int
    """How much of the file (as it is stored) was read for it."""


class Source:
    """The open data file. `header` is read at once; `records` can be called once."""

    def __init__(self, text: TextIO, stored: BinaryIO, path: Path, form: FileFormat) -> None:
        self._lines = _Lines(text, path)
        self._stored = stored
        self._form = form
        self._path = path
        self.header: tuple[str, ...] = form.columns or self._read_header()

    def _read_header(self) -> tuple[str, ...]:
        if self._lines.peek(0) is None:
            raise SourceUnreadable(f"{self._path} is empty")
        line = self._lines.take(1)
        try:
            names = _split(line, self._form)
        except csv.Error as exc:
            raise SourceUnreadable(f"{self._path}:1: the header is malformed: {exc}") from exc
        header = tuple(name.strip() for name in names)
        if len(set(header)) != len(header):
            raise SourceUnreadable(f"{self._path}:1: the header has a name twice: {header}")
        return header

    def records(self) -> Iterator[Record]:
        """Every record after the header; blank lines are no records. Raises SourceUnreadable."""
        while (line := self._lines.peek(0)) is not None:
            if line.strip():
                yield self._take_record()
            else:
                self._lines.take(1)

    def _take_record(self) -> Record:
        text, values, reason = "", None, ""
        lines = 0
        while (line := self._lines.peek(lines)) is not None and lines < RECORD_LINES_MAX:
            text += line
            lines += 1
            try:
                values = tuple(_split(text, self._form))
            except csv.Error as exc:
                reason = f"malformed: {exc}"
                if reason.endswith(_QUOTE_OPEN):
                    continue
            break
        # A malformed record is its first line alone: those after it may well be sound rows.
        taken = lines if values is not None else 1
        first_line = self._lines.number + 1
        raw = self._lines.take(taken)
        return Record(
            first_line=first_line,
            last_line=self._lines.number,
            raw=raw.rstrip("\r\n"),
            values=values,
            reason="" if values is not None else reason,
            prefix=self._lines.digest(),
            file_bytes=self._stored.tell(),
        )

    def row(self, record: Record) -> dict[str, str]:
        """The record's values by column. Raises RowRejected if it is malformed."""
        if record.values is None:
            raise RowRejected(record.reason)
        found, expected = len(record.values), len(self.header)
        if found != expected:
            raise RowRejected(f"the row has {found} values, the header {expected}")
        if _UNDECODED.search(record.raw):
            raise RowRejected(f"the row is not {self._form.encoding} text")
        pairs = zip(self.header, record.values, strict=True)
        if self._form.trims:
            return {name: value.strip() for name, value in pairs}
        return dict(pairs)


@contextmanager
def open_source(path: Path, form: FileFormat) -> Iterator[Source]:
    """The file, opened; a name that ends in .gz is decompressed. Raises SourceUnreadable."""
    try:
        stored = open(path, "rb")  # noqa: SIM115 (closed below; only opening is translated)
    except OSError as exc:
        raise SourceUnreadable(f"{path} cannot be read: {exc.strerror}") from exc
    with stored:
        plain = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
        text = io.TextIOWrapper(plain, encoding=form.encoding, errors="surrogateescape", newline="")
        with text:
            yield Source(text, stored, path, form)


class _Lines:
    """The lines ahead, and a digest of those that were taken."""

    def __init__(self, text: TextIO, path: Path) -> None:
        self._text = text
        self._path = path
        self._ahead: deque[str] = deque()
        self._hash = hashlib.sha256()
        self._is_begun = False
        self.number = 0
        """Of the line taken last."""

    def peek(self, index: int) -> str | None:
        """The line that many after the next one, or None after the end."""
        while len(self._ahead) <= index:
            line = self._read()
            if not line:
                return None
            self._ahead.append(line)
        return self._ahead[index]

    def take(self, count: int) -> str:
        text = "".join(self._ahead.popleft() for _ in range(count))
        self._hash.update(text.encode("utf-8", "surrogateescape"))
        self.number += count
        return text

    def digest(self) -> bytes:
        return self._hash.digest()

    def _read(self) -> str:
        where = f"{self._path}: after line {self.number + len(self._ahead)}"
        try:
            line = self._text.readline(LINE_CHARS_MAX)
        except EOFError as exc:
            raise SourceUnreadable(f"{where} the file is cut off") from exc
        except (OSError, zlib.error) as exc:
            raise SourceUnreadable(f"{where} the file cannot be read: {exc}") from exc
        except UnicodeError as exc:
            raise SourceUnreadable(f"{where} the file is not {exc.args[0]} text") from exc
        if len(line) == LINE_CHARS_MAX:
            raise SourceUnreadable(f"{where} a line is above {LINE_CHARS_MAX} characters")
        if not self._is_begun:
            # A byte order mark is no part of the first name or value, nor of a rejected row.
            line = line.removeprefix("\ufeff")
            self._is_begun = True
        return line


def _split(text: str, form: FileFormat) -> list[str]:
    return next(csv.reader([text], delimiter=form.delimiter, quotechar=form.quote, strict=True))
