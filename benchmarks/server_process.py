"""Server processes under measurement: started, awaited, charged for their processor time, stopped.

`Server` is a context manager; what it starts never outlives it. Addresses are free ports of the
loopback interface.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.errors import NotReady
from infra.local.processes import tethered

READY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 20.0
POLL_S: Final = 0.05
PROBE_S_MAX: Final = 2.0
LOG_TAIL_BYTES: Final = 2_000
HOST: Final = "127.0.0.1"
INHERITED: Final = ("PATH", "HOME", "TMPDIR", "CLOISTER_PG_BINDIR")


class Server:
    """One child process that listens on an address."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        address: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        health_url: str | None = None,
        ready_s_max: float = READY_S_MAX,
        stop_s_max: float = STOP_S_MAX,
    ) -> None:
        """`health_url` must answer 200 before the server counts as ready; else a connect will do.

        The process sees INHERITED and `environment` only: nothing of the caller's leaks in.
        """
        self.name = name
        self.command = list(command)
        self.address = address
        self.log = directory / f"{name}.log"
        self.health_url = health_url
        self.ready_s_max = ready_s_max
        self.stop_s_max = stop_s_max
        self.environment = self.base_environment() | dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def base_environment() -> dict[str, str]:
        return {key: os.environ[key] for key in INHERITED if key in os.environ}

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # A benchmark that is killed would leave a server beside the next one.
                tethered(signal.SIGTERM, self.command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def await_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + self.ready_s_max
        while not self.is_ready():
            status = self.process.poll()
            if status is not None or time.monotonic() > deadline:
                why = "did not answer in time" if status is None else f"exited with {status}"
                tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                raise NotReady(f"{self.name} {why}; the end of its log:\n{tail}")
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        if self.health_url is None:
            return accepts(self.address)
        try:
            with urllib.request.urlopen(self.health_url, timeout=PROBE_S_MAX) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Ask, then kill; the whole process group, so that workers do not stay behind."""
        process = self.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(self.stop_s_max)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S_MAX)
        self.process = None

    def cpu_s(self) -> float:
        """Processor seconds the process has used so far."""
        assert self.process is not None
        return cpu_seconds(self.process.pid)


def python_module(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    command: list[str]
    cpu_s: float
    """User and system time, its own and that of children it has waited for."""


def process_tree(root: int) -> list[Process]:
    """The process and all its descendants that live now."""
    children: dict[int, list[Process]] = defaultdict(list)
    found: list[Process] = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and (process := read_process(directory)) is not None:
            children[process.parent].append(process)
            if process.pid == root:
                found.append(process)
    for process in found:  # grows while it is walked
        found.extend(children[process.pid])
    return found


def read_process(directory: Path) -> Process | None:
    """None where the process has ended meanwhile."""
    try:
        fields = (directory / "stat").read_text().rpartition(")")[2].split()
        command = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
    return Process(
        pid=int(directory.name),
        parent=int(fields[1]),
        command=command,
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
    )


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), PROBE_S_MAX):
        return True
    return False


def free_address() -> str:
    """An address that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return f"{HOST}:{listener.getsockname()[1]}"
