"""The processes of a platform, found by what they are run with, and signals to them."""

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path


class Processes:
    """The processes of one platform, found by what they are run with."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def of(self, victim: str) -> Iterator[int]:
        """The process ids; of the mover, those of every control plane."""
        match victim.split():
            case ["mover"]:
                yield from self._running("control_plane", b"CLOISTER_CONTROL_CELLS_FILE")
            case ["router"]:
                yield from self._running("router", b"CLOISTER_ROUTER_TABLE_FILE")
            case ["catalog"]:
                yield from self._postgres(self._data / "catalog")
            case [cell, "postgres"]:
                yield from self._postgres(self._data / "cells" / cell)
            case [cell]:
                yield from self._running("cell", f"CLOISTER_CELL_NAME={cell}".encode())

    def _running(self, package: str, variable: bytes) -> Iterator[int]:
        wanted, own = f"-m\0{package}\0".encode(), str(self._data).encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                environ = (process / "environ").read_bytes()
            except OSError:  # it has ended meanwhile, or is another user's
                continue
            if wanted in command and variable in environ and own in environ:
                yield int(process.name)

    def _postgres(self, directory: Path) -> Iterator[int]:
        """The postmaster, then its children: stopped alone, it would let them work on."""
        for file in directory.rglob("postmaster.pid"):
            postmaster = int(file.read_text().split()[0])
            yield postmaster
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
            if children.exists():
                yield from map(int, children.read_text().split())


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
