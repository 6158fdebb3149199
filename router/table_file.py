"""The routing table's disk copy: what a router starts from when the control plane is away.

One header line with a checksum, then the table's JSON in one line, as the control plane sent it;
then a line for each change since, a checksum before it. After many changes the table is written
anew. The copy before is kept beside it: should the newer one not read back, an old table is far
better than none.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from control_plane.routing import RoutingChange
from router.errors import RouterError

_MAGIC: Final = b"cloister-routing-table 1 sha256="
CHANGES_MAX: Final = 1_000
"""Then the table is to be written anew: reading the copy must not take longer and longer."""


class TableFileDamaged(RouterError):
    """The file is not what was written."""


class TableFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(path.name + ".previous")
        self._changes = CHANGES_MAX
        """In the file, after the table; as many as there may be while they were not counted."""

    def load(self) -> tuple[RoutingChange | None, list[str]]:
        """The newest copy that reads back, a whole table; what was wrong with those before it."""
        complaints: list[str] = []
        for path in (self.path, self.previous):
            try:
                whole, complaint = decode_table(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, TableFileDamaged) as exc:
                complaints.append(f"{path}: {exc}")
                continue
            if complaint is not None:
                complaints.append(f"{path}: {complaint}")
            return whole, complaints
        return None, complaints

    @property
    def is_appendable(self) -> bool:
        """Changes may be stored alone; else only with a whole table before them."""
        return self._changes < CHANGES_MAX

    def store(self, whole: bytes | None, changes: Sequence[bytes]) -> None:
        """Durably replace the copy by a whole table, or keep it, and add changes of it.

        A crash leaves what was there, or some of the changes too. Blocks for the disk.
        Raises OSError.
        """
        assert whole is not None or self.is_appendable
        # Should this fail half-way, nothing may be written after it but a whole table.
        count = 0 if whole is not None else self._changes
        self._changes = CHANGES_MAX
        if whole is not None:
            self._replace(encode_table(whole))
        if changes:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            _write(descriptor, b"".join(map(encode_change, changes)))
        self._changes = count + len(changes)

    def _replace(self, content: bytes) -> None:
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        _write(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), content)
        self._keep_previous()
        os.replace(fresh, self.path)
        self._sync_directory()

    def _keep_previous(self) -> None:
        # By way of a link, so that at no moment there is no current copy.
        link = self.path.with_name(self.path.name + ".link")
        link.unlink(missing_ok=True)
        try:
            os.link(self.path, link)
        except FileNotFoundError:
            return
        os.replace(link, self.previous)

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def encode_table(body: bytes) -> bytes:
    body = _in_one_line(body)
    return _MAGIC + _checksum(body) + b"\n" + body + b"\n"


def encode_change(body: bytes) -> bytes:
    body = _in_one_line(body)
    return _checksum(body) + b" " + body + b"\n"


def _in_one_line(body: bytes) -> bytes:
    """A line's end within JSON is white space between its parts."""
    return body.replace(b"\n", b" ")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def decode_table(content: bytes) -> tuple[RoutingChange, str | None]:
    """The whole table, and why not all that follows it was read. Raises TableFileDamaged."""
    header, _, rest = content.partition(b"\n")
    if not header.startswith(_MAGIC):
        raise TableFileDamaged("no routing table of a format known here")
    body, *lines = rest.split(b"\n")
    whole = _read(header.removeprefix(_MAGIC), body)
    if not whole.fits(None):
        raise TableFileDamaged("it begins with a change, not with a whole table")
    # All changes as one: to apply each would copy the whole table as often.
    changes: RoutingChange | None = None
    complaint = None
    for line in filter(None, lines):
        checksum, _, body = line.partition(b" ")
        try:
            changes = _joined(changes or whole, _read(checksum, body))
        except TableFileDamaged as exc:
            # Appended when the process was killed, or the disk was full.
            complaint = f"a change after version {(changes or whole).version}: {exc}"
            break
    return whole if changes is None else whole.followed_by(changes), complaint


def _joined(before: RoutingChange, change: RoutingChange) -> RoutingChange:
    """The change, with those before it. Raises TableFileDamaged where one is missing between."""
    if not change.since or not change.fits(before):
        raise TableFileDamaged(f"it is of what changed since version {change.since}")
    return before.followed_by(change) if before.since else change


def _read(checksum: bytes, body: bytes) -> RoutingChange:
    """Raises TableFileDamaged."""
    if checksum != _checksum(body):
        raise TableFileDamaged("the checksum does not match")
    try:
        return parse_change(body)
    except msgspec.MsgspecError as exc:
        raise TableFileDamaged(str(exc)) from exc


def parse_change(body: bytes) -> RoutingChange:
    """What the control plane sent; a whole table is one since version 0.

    Raises msgspec.MsgspecError.
    """
    return _DECODER.decode(body)


_DECODER: Final = msgspec.json.Decoder(RoutingChange)
