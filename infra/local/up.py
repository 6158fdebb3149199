"""Starting a platform, in this process or in a supervisor left behind, and stopping one.

Called by the CLI; prints nothing. The supervisor left behind is this same command with the hidden
option `--report-fd`, in a session of its own.
"""

import asyncio
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from infra.errors import InfraError, StartFailed, StopFailed
from infra.local.binaries import BINDIR_VARIABLE
from infra.local.children import LIBPQ_PREFIX
from infra.local.layout import (
    DataDirectory,
    find_data_directory,
    full_disk_explained,
    hold_lock,
    lock_holder,
    open_data_directory,
)
from infra.local.plan import Plan, make_plan
from infra.local.platform import Ready, Reports, run_platform
from infra.local.postgres import wait_until_unused
from infra.local.processes import is_running, log_tail
from infra.local.reporting import Report, open_supervisor_log
from infra.local.supervisor import open_log

READY_S_MAX: Final = 360.0
"""For a detached supervisor; above the sum of what its own steps may take."""
STOP_S_MAX: Final = 120.0
"""For `down`; above the sum of the deadlines of an orderly stop."""
LEFTOVER_S_MAX: Final = 60.0
POLL_S: Final = 0.05
SUPERVISOR_LOG: Final = "supervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    file: Path | None
    """cells.yaml; None: the built-in one."""
    data: Path
    router_port: int
    control_port: int


def run_here(options: UpOptions, reports: Reports, *, show_log: bool) -> None:
    """Run the platform in this process until it is told to stop by SIGINT, SIGTERM or SIGHUP.

    Raises InfraError or ControlPlaneError when it cannot start; nothing is left running then.
    """
    forget_libpq_variables()
    data = open_data_directory(options.data)
    with full_disk_explained(data), hold_lock(data):
        log = open_supervisor_log(data.log(SUPERVISOR_LOG), show=show_log)
        plan = make_plan(data, options.file, options.router_port, options.control_port)
        try:
            asyncio.run(run_until_signalled(plan, reports, log))
        except InfraError as exc:
            log.critical("platform failed", extra={"code": exc.code, "reason": str(exc)})
            raise


def forget_libpq_variables() -> None:
    """Drop PGHOST, PGOPTIONS and their like: they would change connections behind our back."""
    for name in [name for name in os.environ if name.startswith(LIBPQ_PREFIX)]:
        del os.environ[name]


async def run_until_signalled(plan: Plan, reports: Reports, log: logging.Logger) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup a hang-up is ignored, and shall stay so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    await run_platform(plan, stop, reports, log)


def run_detached(options: UpOptions, progress: Callable[[str], None]) -> Ready:
    """Leave a supervisor behind that runs the platform; returns when it is ready.

    Raises StartFailed with the supervisor's reason, or with the end of its log if it gave none.
    """
    data = open_data_directory(options.data)
    receiving, sending = os.pipe()
    with full_disk_explained(data), open(receiving, "rb", buffering=0) as pipe:
        try:
            with open_log(data.log(SUPERVISOR_LOG)) as log:
                log_start = log.tell()
                supervisor = subprocess.Popen(
                    supervisor_command(data, options, sending),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(sending,),
                    start_new_session=True,
                    cwd=data.root,
                    env=supervisor_environment(),
                )
        finally:
            os.close(sending)
        try:
            outcome = wait_for_outcome(pipe.fileno(), progress)
        except BaseException:
            # Interrupted, or too late: what was begun is ended in order.
            end_supervisor(supervisor)
            raise
    if outcome.ready is None:
        end_supervisor(supervisor)
        tail = log_tail(data.log(SUPERVISOR_LOG), log_start)
        raise StartFailed(outcome.failed or f"the supervisor died; the end of its log:\n{tail}")
    # It goes on without us: no warning shall say that we did not wait for it.
    supervisor.returncode = 0
    return outcome.ready


def supervisor_command(data: DataDirectory, options: UpOptions, descriptor: int) -> list[str]:
    file = [] if options.file is None else ["--file", str(options.file.absolute())]
    return [
        *(sys.executable, "-P", "-m", "infra.cli", "up"),
        *("--data", str(data.root)),
        *("--router-port", str(options.router_port)),
        *("--control-port", str(options.control_port)),
        *("--report-fd", str(descriptor)),
        *file,
    ]


def supervisor_environment() -> dict[str, str]:
    environment = dict(os.environ)
    if chosen := environ_path(BINDIR_VARIABLE):
        # The supervisor works in another directory.
        environment[BINDIR_VARIABLE] = str(chosen)
    return environment


def environ_path(name: str) -> Path | None:
    text = os.environ.get(name)
    return Path(text).expanduser().absolute() if text else None


def wait_for_outcome(descriptor: int, progress: Callable[[str], None]) -> Report:
    """The report that ends the start; an empty one if the supervisor died without any."""
    deadline = time.monotonic() + READY_S_MAX
    buffered = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            received = os.read(descriptor, 65536)
            if not received:
                return Report()
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                report = msgspec.json.decode(line, type=Report)
                if report.progress is None:
                    return report
                progress(report.progress)
    raise StartFailed(f"the platform was not ready within {READY_S_MAX:g} s")


def end_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.terminate()
    try:
        supervisor.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait(LEFTOVER_S_MAX)


def stop_platform(root: Path) -> int | None:
    """Stop the platform that runs on the data directory, and wait until all of it is gone.

    Returns the process id of its supervisor, or None where none was running. Repeatable. Raises
    StopFailed if it does not stop in time.
    """
    data = find_data_directory(root)
    if data is None:
        return None
    pid = lock_holder(data)
    if pid is not None:
        signal_supervisor(data, pid)
        deadline = time.monotonic() + STOP_S_MAX
        while lock_holder(data) == pid or is_running(pid):
            if time.monotonic() > deadline:
                raise StopFailed(
                    f"the platform on {data.root}, pid {pid}, did not stop within {STOP_S_MAX:g} s;"
                    f" {data.log(SUPERVISOR_LOG)} says why. Remedy: `kill -KILL {pid}`"
                )
            time.sleep(POLL_S)
    # A supervisor that was killed leaves databases behind that are just shutting down.
    for instance in (data.catalog, *data.cells.iterdir()):
        wait_until_unused(instance / "data", LEFTOVER_S_MAX)
    return pid


def signal_supervisor(data: DataDirectory, pid: int) -> None:
    try:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    except PermissionError as exc:
        raise StopFailed(
            f"the platform on {data.root}, pid {pid}, belongs to another user. Remedy: run"
            " `cloister down` as its owner"
        ) from exc
