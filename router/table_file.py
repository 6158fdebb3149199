"""The routing table's disk copy: what a router starts from when the control plane is away.

One header line with a checksum, then the table's JSON as the control plane sent it. The copy before
is kept beside it: should the newer one not read back, an old table is far better than none.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from control_plane.routing import RoutingTable
from router.errors import RouterError

_MAGIC: Final = b"cloister-routing-table 1 sha256="


class TableFileDamaged(RouterError):
    """The file is not what was written."""


class TableFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(path.name + ".previous")

    def load(self) -> tuple[RoutingTable | None, list[str]]:
        """The newest copy that reads back, and what was wrong with those before it."""
        complaints: list[str] = []
        for path in (self.path, self.previous):
            try:
                return decode_table(path.read_bytes()), complaints
            except FileNotFoundError:
                continue
            except (OSError, TableFileDamaged) as exc:
                complaints.append(f"{path}: {exc}")
        return None, complaints

    def store(self, body: bytes) -> None:
        """Durably replace the copy by this JSON; a crash leaves the old or the new one whole.

        Blocks for the disk. Raises OSError.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_table(body))
            file.flush()
            os.fsync(file.fileno())
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


def encode_table(body: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode_table(content: bytes) -> RoutingTable:
    """Raises TableFileDamaged."""
    header, _, body = content.partition(b"\n")
    if not header.startswith(_MAGIC):
        raise TableFileDamaged("no routing table of a format known here")
    if header.removeprefix(_MAGIC) != hashlib.sha256(body).hexdigest().encode():
        raise TableFileDamaged("the checksum does not match")
    try:
        return parse_table(body)
    except msgspec.MsgspecError as exc:
        raise TableFileDamaged(str(exc)) from exc


def parse_table(body: bytes) -> RoutingTable:
    """Raises msgspec.MsgspecError."""
    return _DECODER.decode(body)


_DECODER: Final = msgspec.json.Decoder(RoutingTable)
