"""The supervisor, on small real children: scripts that serve, die, hang and refuse to end.

A child is healthy once it has written its ready file.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cell.logs import JsonLines
from infra.errors import PostgresInUse, StartFailed
from infra.local import supervisor
from infra.local.processes import is_running, tethered
from infra.local.supervisor import Child, ChildSpec, open_log, restart_delay

DEADLINE_S = 90.0

SERVES = """
import os, pathlib, time
pathlib.Path("ready").write_text(str(os.getpid()))
while True: time.sleep(60)
"""
IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVES
DIES_TWICE_FIRST = (
    """
import pathlib, sys
starts = pathlib.Path("starts")
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
if len(starts.read_text()) < 3: sys.exit("not yet")
"""
    + SERVES
)


def python_spec(directory: Path, script: str) -> ChildSpec:
    async def is_healthy() -> bool:
        return (directory / "ready").exists()

    async def prepare() -> None:
        (directory / "ready").unlink(missing_ok=True)

    return ChildSpec(
        name="child",
        command=lambda: tethered(signal.SIGKILL, [sys.executable, "-c", script]),
        environment={},
        directory=directory,
        log=directory / "child.log",
        is_healthy=is_healthy,
        prepare=prepare,
        start_s_max=DEADLINE_S,
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    handler = logging.FileHandler(tmp_path / "supervisor.log")
    handler.setFormatter(JsonLines("supervisor"))
    log = logging.Logger(f"test {tmp_path}")
    log.addHandler(handler)
    yield log
    handler.close()


def logged(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "supervisor.log").read_text().splitlines()]


@asynccontextmanager
async def running(spec: ChildSpec, log: logging.Logger) -> AsyncIterator[Child]:
    child = Child(spec, log)
    try:
        await child.start()
        yield child
    finally:
        await child.stop()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


async def test_a_child_is_started_and_ended(tmp_path: Path, log: logging.Logger) -> None:
    async with running(python_spec(tmp_path, SERVES), log) as child:
        pid = int((tmp_path / "ready").read_text())
        assert child.pid == pid
        assert os.getsid(pid) == pid
    assert not is_running(pid)
    assert logged(tmp_path) == []


async def test_a_killed_child_is_started_again_and_logged_once(
    tmp_path: Path, log: logging.Logger
) -> None:
    async with running(python_spec(tmp_path, SERVES), log) as child:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.restarts == 1, "a restart")
        await until((tmp_path / "ready").exists, "the new child is ready")
        assert child.pid != first
        second = child.pid
    (line,) = logged(tmp_path)
    assert line["message"] == "child restarted"
    assert (line["child"], line["reason"], line["restarts"]) == ("child", "signal SIGKILL", 1)
    assert (line["child_pid"], line["delay_ms"]) == (second, 100)


@pytest.mark.parametrize(
    ("failures", "delay_s"),
    [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10), (10**6, 10)],
)
def test_pauses_grow_and_are_bounded(failures: int, delay_s: float) -> None:
    assert restart_delay(failures) == pytest.approx(delay_s)


async def test_the_first_start_is_tried_again(tmp_path: Path, log: logging.Logger) -> None:
    async with running(python_spec(tmp_path, DIES_TWICE_FIRST), log):
        assert (tmp_path / "starts").read_text() == "xxx"


async def test_a_child_that_cannot_start_fails_with_its_last_words(
    tmp_path: Path, log: logging.Logger
) -> None:
    spec = python_spec(tmp_path, "import sys; sys.exit('no such luck')")
    with pytest.raises(StartFailed, match=r"child ended with exit status 1(?s:.*)no such luck"):
        await Child(spec, log).start()


async def test_refused_settings_fail_at_once(tmp_path: Path, log: logging.Logger) -> None:
    script = "import sys; print('X is not set', file=sys.stderr); open('n', 'a').write('x')\n"
    spec = python_spec(tmp_path, script + "sys.exit(2)")
    with pytest.raises(StartFailed, match="X is not set"):
        await Child(spec, log).start()
    assert (tmp_path / "n").read_text() == "x"


async def test_a_child_that_never_becomes_healthy_is_ended(
    tmp_path: Path, log: logging.Logger
) -> None:
    script = "import time, os; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    spec = replace(python_spec(tmp_path, script), start_s_max=0.5)
    told = tmp_path / "pid"
    while not told.exists() or not told.read_text():
        # A busy machine may take longer than that to start it.
        with pytest.raises(StartFailed, match=rf"not healthy within {spec.start_s_max:g} s"):
            await Child(spec, log).start()
        spec = replace(spec, start_s_max=2 * spec.start_s_max)
    assert not is_running(int(told.read_text()))


async def test_a_child_that_ignores_the_signal_is_killed(
    tmp_path: Path, log: logging.Logger
) -> None:
    stop = ((signal.SIGTERM, 0.2), (signal.SIGKILL, DEADLINE_S))
    async with running(replace(python_spec(tmp_path, IGNORES_TERM), stop=stop), log) as child:
        pid = child.pid
    assert pid is not None
    assert not is_running(pid)
    (line,) = logged(tmp_path)
    assert (line["message"], line["signal"]) == ("child did not end in time", "SIGTERM")


async def test_a_restart_that_cannot_be_prepared_is_tried_until_it_can(
    tmp_path: Path, log: logging.Logger
) -> None:
    (tmp_path / "free").touch()
    spec = python_spec(tmp_path, SERVES)
    prepare: Callable[[], Awaitable[None]] = spec.prepare

    async def prepare_if_free() -> None:
        await prepare()
        if not (tmp_path / "free").exists():
            raise PostgresInUse("somebody is there")

    async with running(replace(spec, prepare=prepare_if_free), log) as child:
        (tmp_path / "free").unlink()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: logged(tmp_path), "a refused restart")
        (tmp_path / "free").touch()
        await until(lambda: child.restarts == 1, "a restart")
    assert logged(tmp_path)[0]["reason"] == "somebody is there"


async def test_a_child_is_not_started_again_while_it_is_stopped(
    tmp_path: Path, log: logging.Logger
) -> None:
    async with running(python_spec(tmp_path, SERVES), log) as child:
        assert child.pid is not None
        # It ends and is stopped at once: the keeper may see either first.
        os.kill(child.pid, signal.SIGKILL)
        await child.stop()
        assert child.pid is None


async def test_children_die_with_their_supervisor(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, cwd=tmp_path)
    await until(lambda: (tmp_path / "ready").exists(), "the child is ready")
    pid = int((tmp_path / "ready").read_text())
    parent.kill()
    await parent.wait()
    await until(lambda: not is_running(pid), "the child dies")


PARENT = f"""
import signal, subprocess, sys, time
from infra.local.processes import is_running, tethered
command = tethered(signal.SIGKILL, [sys.executable, "-c", {SERVES!r}])
subprocess.Popen(command, start_new_session=True)
time.sleep(60)
"""


def test_a_tether_to_a_parent_that_is_gone_starts_nothing() -> None:
    command = tethered(signal.SIGKILL, ["/bin/echo", "started"])
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_large_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES_MAX", 10)
    for text in (b"first, long enough\n", b"second\n", b"third\n"):
        with open_log(tmp_path / "x.log") as log:
            log.write(text)
    assert (tmp_path / "x.log").read_bytes() == b"second\nthird\n"
    assert (tmp_path / "x.log.1").read_bytes() == b"first, long enough\n"
