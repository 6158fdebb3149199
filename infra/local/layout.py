"""The platform's data directory: where everything lives, in which format, and who holds it.

    DATA/format        one line; names the format, so that no release misreads another's files
    DATA/lock          held with flock by the supervisor as long as it lives; holds its process id
    DATA/ports.json    internal ports, kept from start to start
    DATA/logs/         one file per process
    DATA/secrets/      tokens, the demo tenant's key, the cells with their connection strings
    DATA/catalog/      the control plane's Postgres
    DATA/cells/<name>/ one cell's Postgres
    DATA/sockets/      one per cell, for the router
    DATA/incarnations/ one file per cell, by which it knows its database from an older state of it
    DATA/router/       the router's copy of the routing table

Everything is private to its owner. Nothing else is read or written below DATA.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.errors import (
    DataError,
    DataFormat,
    DiskFull,
    InfraError,
    NotADataDirectory,
    PlatformRunning,
)
from infra.local.private import ensure_private_directory, write_private

DATA_VARIABLE: Final = "CLOISTER_DATA"
FORMAT: Final = "cloister data directory, format 1"
"""Changes whenever this release could not use an older directory, or an older one this."""
LOCK_S_MAX: Final = 1.0
"""How long to ask for the lock: somebody may hold it for an instant, to see whether it is held."""
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDirectory:
    root: Path
    """Absolute, without links."""

    @property
    def format_file(self) -> Path:
        return self.root / "format"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    @property
    def ports_file(self) -> Path:
        return self.root / "ports.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog"

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    @property
    def sockets(self) -> Path:
        return self.root / "sockets"

    @property
    def incarnations(self) -> Path:
        return self.root / "incarnations"

    @property
    def router(self) -> Path:
        return self.root / "router"

    @property
    def subdirectories(self) -> tuple[Path, ...]:
        """Of those above, the ones that are there from the beginning."""
        return (
            self.logs,
            self.secrets,
            self.cells,
            self.sockets,
            self.incarnations,
            self.router,
        )

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def cell(self, name: str) -> Path:
        return self.cells / name


def default_data_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """CLOISTER_DATA, else ~/.local/share/cloister."""
    chosen = environ.get(DATA_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".local" / "share" / "cloister"


def open_data_directory(root: Path) -> DataDirectory:
    """The data directory, created where nothing is yet.

    Raises NotADataDirectory for a directory with other content, which is left untouched;
    DataFormat for one of another format; DataError where it cannot be created or read.
    """
    data = locate_data_directory(root)
    try:
        data.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not data.format_file.exists():
            refuse_foreign(data)
            ensure_private_directory(data.root)
            write_private(data.format_file, FORMAT + "\n")
        require_format(data)
        ensure_private_directory(data.root)
        for directory in data.subdirectories:
            ensure_private_directory(directory)
    except OSError as exc:
        raise DataError(
            f"the data directory {data.root} cannot be used: {exc.strerror}. Remedy: name a"
            f" writable one with --data or {DATA_VARIABLE}"
        ) from exc
    return data


def find_data_directory(root: Path) -> DataDirectory | None:
    """The data directory if it exists; None where nothing was ever started.

    Raises NotADataDirectory and DataFormat as `open_data_directory`; writes nothing.
    """
    data = locate_data_directory(root)
    if not data.root.exists():
        return None
    if not data.format_file.exists():
        refuse_foreign(data)
        return None
    require_format(data)
    return data


def locate_data_directory(root: Path) -> DataDirectory:
    return DataDirectory(root=root.expanduser().resolve())


def refuse_foreign(data: DataDirectory) -> None:
    if not data.root.is_dir():
        raise NotADataDirectory(f"{data.root} is no directory. Remedy: name another with --data")
    found = next((entry.name for entry in data.root.iterdir()), None)
    if found is not None:
        raise NotADataDirectory(
            f"{data.root} holds something else ({found}) and is no data directory of a platform."
            " Remedy: name another with --data, or one that does not exist yet"
        )


def require_format(data: DataDirectory) -> None:
    found = data.format_file.read_text(encoding="utf-8", errors="replace").strip()
    if found != FORMAT:
        raise DataFormat(
            f"{data.root} has the format {found!r}, this release knows {FORMAT!r}. Remedy: run the"
            " release that wrote it, or name another directory with --data"
        )


@contextmanager
def full_disk_explained(data: DataDirectory) -> Iterator[None]:
    """Raises DiskFull for what our files, initdb or a process's log say of a full disk."""
    try:
        yield
    except (OSError, InfraError) as exc:
        if not any(os.strerror(number) in str(exc) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise DiskFull(
            f"the disk of {data.root} is full: {exc}\nRemedy: make room there, or name a directory"
            f" on another disk with --data or {DATA_VARIABLE}"
        ) from exc


@contextmanager
def hold_lock(data: DataDirectory) -> Iterator[None]:
    """Hold the data directory alone; the system lets go of it when this process ends.

    Raises PlatformRunning with the process id of the holder.
    """
    # Never inherited by children (Python opens files close-on-exec): a child that outlives the
    # supervisor must not keep the next one out.
    with data.lock_file.open("a+", encoding="utf-8") as file:
        if not try_lock(file.fileno(), LOCK_S_MAX):
            holder = read_holder(data)
            pid = "unknown" if holder is None else str(holder)
            raise PlatformRunning(
                f"{data.root} is in use by a running platform, pid {pid}. Remedy: `cloister down"
                f" --data {data.root}`, or name another directory with --data"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def lock_holder(data: DataDirectory) -> int | None:
    """The process id of the supervisor that holds the directory, or None if nobody does."""
    if not data.lock_file.exists():
        return None
    with data.lock_file.open("r", encoding="utf-8") as file:
        if try_lock(file.fileno(), 0.0):
            return None
    return read_holder(data)


def try_lock(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)


def read_holder(data: DataDirectory) -> int | None:
    try:
        return int(data.lock_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
