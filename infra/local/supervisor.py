"""Keeps one child process running: starts it, waits until it is healthy, restarts it, stops it.

Knows nothing of what the child is; `platform.py` composes the children. Every child runs in a
session of its own, so that Ctrl-C reaches the supervisor alone and children end in the right
order; a tether (`processes.tethered`) ends them should the supervisor be killed.
"""

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from infra.errors import InfraError, StartFailed
from infra.local.processes import log_tail

RESTART_FIRST_S: Final = 0.1
RESTART_S_MAX: Final = 10.0
STABLE_S: Final = 30.0
"""A child that lived this long starts again without a pause; shorter lives count as failures."""
STARTS_MAX: Final = 3
"""Attempts of the very first start; more would only hide the reason from whoever waits for it."""
EXIT_SETTINGS: Final = 2
"""Exit status of a process that refuses its settings: trying again cannot help."""
HEALTH_POLL_S: Final = 0.05
STOP_S: Final = 15.0
KILL_S: Final = 5.0
LOG_BYTES_MAX: Final = 64 << 20
"""A log above this size is set aside (one generation) when its process starts."""


async def nothing_to_prepare() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run and how to tell that it works."""

    name: str
    command: Callable[[], Sequence[str]]
    """Asked at every start, in the thread that starts the child."""
    environment: Mapping[str, str]
    """The child's whole environment."""
    directory: Path
    """Its working directory."""
    log: Path
    """Where its output is appended."""
    is_healthy: Callable[[], Awaitable[bool]]
    """Asked until true after each start; must answer or fail within seconds."""
    prepare: Callable[[], Awaitable[None]] = nothing_to_prepare
    """Done before each start; an InfraError counts as a failed start."""
    stop: Sequence[tuple[signal.Signals, float]] = (
        (signal.SIGTERM, STOP_S),
        (signal.SIGKILL, KILL_S),
    )
    """Signals, each with the seconds to wait for the child's end before the next."""
    start_s_max: float = 60.0
    """From the first start until healthy."""


def restart_delay(failures: int) -> float:
    """Seconds to wait before the next start after so many failures in a row (0: none yet)."""
    if failures == 0:
        return 0.0
    # The exponent is bounded as well: a child may fail for days.
    return min(RESTART_S_MAX, RESTART_FIRST_S * 2.0 ** min(failures - 1, 16))


class Child:
    """One supervised process; `start`, then `stop`, once each, from the main thread."""

    def __init__(self, spec: ChildSpec, log: logging.Logger) -> None:
        self.spec = spec
        self.restarts = 0
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def keeper(self) -> asyncio.Task[None]:
        """The task that restarts the child; it never ends by itself."""
        assert self._keeper is not None, "the child was not started"
        return self._keeper

    async def start(self) -> None:
        """Start the child and return when it is healthy; from then on it is restarted.

        Raises StartFailed with the end of the child's log, or what `prepare` raises; then nothing
        is left running.
        """
        deadline = time.monotonic() + self.spec.start_s_max
        try:
            for attempt in range(1, STARTS_MAX + 1):
                await self.spec.prepare()
                process = await self._spawn()
                if await self._becomes_healthy(process, deadline):
                    break
                exited = process.returncode
                if exited in (None, EXIT_SETTINGS) or attempt == STARTS_MAX:
                    raise StartFailed(self._describe_failure(exited))
                await asyncio.sleep(restart_delay(attempt))
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def stop(self) -> None:
        """End the child, by force if it must be; it is not restarted any more. Repeatable."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end()

    async def _spawn(self) -> asyncio.subprocess.Process:
        # Blocking file calls, but short ones; and the child must be started by this very thread.
        with open_log(self.spec.log) as log:
            self._log_start = log.tell()
            self._started_at = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.spec.environment),
                cwd=self.spec.directory,
                start_new_session=True,
            )
        return self._process

    async def _becomes_healthy(self, process: asyncio.subprocess.Process, deadline: float) -> bool:
        while process.returncode is None and time.monotonic() < deadline:
            # Asked twice: an answer may come from something else that took the child's place.
            if await self.spec.is_healthy() and process.returncode is None:
                return True
            await asyncio.sleep(HEALTH_POLL_S)
        return False

    def _describe_failure(self, exited: int | None) -> str:
        name, log = self.spec.name, self.spec.log
        reason = (
            f"was not healthy within {self.spec.start_s_max:g} s"
            if exited is None
            else f"ended with {describe_exit(exited)}"
        )
        return f"{name} {reason}; the end of {log}:\n{log_tail(log, self._log_start)}"

    async def _keep(self) -> None:
        """Restart the child whenever it ends; ends by cancellation only."""
        failures = 0
        while True:
            assert self._process is not None
            exited = await self._process.wait()
            lived_s = time.monotonic() - self._started_at
            failures = 0 if lived_s > STABLE_S else failures + 1
            failures = await self._restart(exited, failures)

    async def _restart(self, exited: int, failures: int) -> int:
        """Start the child again, however often it takes; returns the failures by then."""
        while True:
            delay_s = restart_delay(failures)
            await asyncio.sleep(delay_s)
            try:
                await self.spec.prepare()
                process = await self._spawn()
            except (InfraError, OSError) as exc:
                failures += 1
                self._log.error(
                    "child not restarted", extra={"child": self.spec.name, "reason": str(exc)}
                )
                continue
            self.restarts += 1
            self._log.warning(
                "child restarted",
                extra={
                    "child": self.spec.name,
                    "reason": describe_exit(exited),
                    "delay_ms": round(delay_s * 1000),
                    "restarts": self.restarts,
                    "child_pid": process.pid,
                },
            )
            return failures

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        for stop_signal, wait_s in self.spec.stop:
            with suppress(ProcessLookupError):
                process.send_signal(stop_signal)
            try:
                async with asyncio.timeout(wait_s):
                    await process.wait()
                self._process = None
                return
            except TimeoutError:
                self._log.error(
                    "child did not end in time",
                    extra={
                        "child": self.spec.name,
                        "child_pid": process.pid,
                        "signal": stop_signal.name,
                        "waited_s": wait_s,
                    },
                )


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def open_log(path: Path) -> IO[bytes]:
    """The log for appending, its predecessor set aside where it has grown too large."""
    # Copied and emptied, not renamed: a former process may still be appending to it.
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "ab")
    file.seek(0, os.SEEK_END)
    return file
