"""How children are started, and what can be seen of processes and logs; signals nobody."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.local import tether

LOG_TAIL_BYTES: Final = 4000
LOG_TAIL_LINES: Final = 15


def tethered(parent_death: signal.Signals, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` and signals it when the starting thread ends.

    Valid for children of the calling process only. The process id stays that of the command.
    """
    script = [sys.executable, "-I", "-S", tether.__file__]
    return [*script, str(int(parent_death)), str(os.getpid()), *command]


def processes_running_in(directory: Path, command: str) -> list[int]:
    """Process ids of `command` (its short name) whose working directory is `directory`.

    A Postgres server and all its backends work in their data directory, so this finds a server
    whatever its lock file says. Empty on systems without /proc.
    """
    wanted = str(directory.resolve())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == wanted and read_command(entry) == command:
                found.append(int(entry.name))
        except OSError:
            # Gone meanwhile, or another user's: neither can be a server of ours.
            continue
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended; a zombie has, and only waits to be asked."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # The state follows the name, which stands in parentheses and may hold any character.
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def read_command(entry: Path) -> str:
    return (entry / "comm").read_text().strip()


def log_tail(path: Path, start: int = 0) -> str:
    """The last lines of a log, of those written after the byte position `start`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError as exc:
        return f"(no log: {exc})"
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"
