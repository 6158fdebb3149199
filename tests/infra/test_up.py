"""`cloister up` and `down` as people run them: real processes, killed in every way that matters.

One detached platform of the built-in topology serves most tests; those that stop or kill a
supervisor run a platform of one small cell of their own.
"""

import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from infra.local.demo import DemoMaker
from infra.local.layout import open_data_directory
from infra.local.reporting import LogFile

DEADLINE_S = 150.0
ONE_CELL = """
cells:
  only:
    postgres: {shared_buffers: 16MB, max_connections: 25}
"""

ANY_PORTS = ("--router-port", "0", "--control-port", "0")


class Home:
    """A directory in which the `cloister` command runs as one user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CLOISTER_", "PG"))
        } | {"XDG_CONFIG_HOME": str(root / "config"), "COLUMNS": "200"}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "infra.cli", *map(str, arguments)]

    def run(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environ | environ,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def up(self, *more: str | Path) -> dict[str, Any]:
        done = self.run(*("up", "--data", self.data, *ANY_PORTS, "--detach", "--json", *more))
        assert done.returncode == 0, done.stderr
        ready: dict[str, Any] = json.loads(done.stdout)
        return ready

    def down(self) -> str:
        done = self.run("down", "--data", self.data)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def one_cell(self) -> Path:
        (self.root / "one.yaml").write_text(ONE_CELL)
        return self.root / "one.yaml"

    def processes(self) -> list[int]:
        """All processes of the platform: every child works below the data directory."""
        return [pid for pid in all_processes() if is_below(self.data, working_directory(pid))]

    def log(self, name: str) -> str:
        return (self.data / "logs" / name).read_text()


def all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def working_directory(pid: int) -> Path:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return Path("/")


def is_below(root: Path, path: Path) -> bool:
    return path.is_relative_to(root)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


def healthy(url: str) -> bool:
    try:
        return (
            httpx.get(f"{url}/healthz", timeout=2, trust_env=False, verify=False).status_code == 200
        )
    except httpx.HTTPError:
        return False


def ping(ready: dict[str, Any]) -> int:
    demo = ready["demo"]
    try:
        return httpx.get(
            f"{ready['router']}/api/ping",
            auth=(demo["organization_id"], demo["api_key"]),
            timeout=5,
            trust_env=False,
            verify=False,
        ).status_code
    except httpx.HTTPError:
        return 0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    left = home.processes()
    if left:
        home.down()
    assert not left, "a test stops what it started"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, dict[str, Any]]]:
    """A detached platform of the built-in topology, and what `up --json` said."""
    home = Home(tmp_path_factory.mktemp("platform"))
    try:
        yield home, home.up()
    finally:
        home.down()
        assert home.processes() == []


Running = tuple[Home, dict[str, Any]]


# --- a running platform ------------------------------------------------------------------------


def test_ready_means_that_everything_answers(platform: Running) -> None:
    _, ready = platform
    assert ping(ready) == 200
    assert healthy(ready["router_operator"])
    assert healthy(ready["control_plane"])
    assert [cell["name"] for cell in ready["cells"]] == ["cell-a", "cell-b"]
    for cell in ready["cells"]:
        assert healthy(cell["operator"])


def test_the_other_commands_find_the_platform(platform: Running) -> None:
    home, ready = platform
    port = ready["control_plane"].rpartition(":")[2]
    listed = home.run("tenants", "list", "--json", "--control-port", port)
    assert listed.returncode == 0, listed.stderr
    assert "demo" in listed.stdout


def test_each_cell_has_its_own_tuned_database(platform: Running) -> None:
    home, _ = platform
    found = {}
    for cell in ("cell-a", "cell-b"):
        with psycopg.connect(superuser_dsn(home, cell)) as connection:
            rows = connection.execute(SETTINGS).fetchall()
        found[cell] = dict(rows)
    assert found["cell-a"]["shared_buffers"] == "16384"
    assert found["cell-b"]["shared_buffers"] == "32768"
    assert (found["cell-a"]["max_connections"], found["cell-b"]["max_connections"]) == ("40", "60")
    assert found["cell-b"]["max_wal_size"] == found["cell-b"]["min_wal_size"] == "4096"
    assert found["cell-a"]["max_wal_size"] == found["cell-a"]["min_wal_size"] == "1024"
    assert {found[cell]["fsync"] for cell in found} == {"on"}
    identifiers = {found[cell]["identifier"] for cell in found}
    assert len(identifiers) == 2, "every instance comes from an initdb of its own"


SETTINGS = """
select name, setting from pg_settings
 where name in ('shared_buffers', 'max_connections', 'max_wal_size',
    'min_wal_size', 'fsync')
union all select 'identifier', system_identifier::text from pg_control_system()
"""


def superuser_dsn(home: Home, cell: str) -> str:
    directory = home.data / "cells" / cell
    password = json.loads((directory / "passwords.json").read_text())["postgres"]
    return make_conninfo(
        host=str(directory / "run"), user="postgres", password=password, dbname="postgres"
    )


def test_secrets_are_private_and_in_no_log(platform: Running) -> None:
    home, ready = platform
    secrets = [ready["demo"]["api_key"]]
    for file in [*home.data.rglob("passwords.json"), home.data / "secrets" / "tokens.json"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        secrets += re.findall(r'"([A-Za-z0-9_-]{43})"', file.read_text())
    assert len(secrets) >= 14
    for log in (home.data / "logs").iterdir():
        text = log.read_text()
        assert not [secret for secret in secrets if secret in text], log
    for path in (home.data, *home.data.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.is_file(), path


def test_children_hold_only_their_own_secrets(platform: Running) -> None:
    home, _ = platform
    tokens = json.loads((home.data / "secrets" / "tokens.json").read_text())
    holders = {"operator": set(), "router": set()}
    for pid in home.processes():
        environ = Path(f"/proc/{pid}/environ").read_text()
        package = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[3]
        for name in holders:
            if tokens[name] in environ:
                holders[name].add(package)
    assert holders == {"operator": {"control_plane"}, "router": {"control_plane", "router"}}


@pytest.mark.parametrize("child", ["cell-a postgres", "cell-b", "router", "control plane"])
def test_a_killed_child_comes_back(platform: Running, child: str) -> None:
    home, ready = platform
    before = restarts(home, child)
    os.kill(child_pid(home, child), signal.SIGKILL)
    until(lambda: restarts(home, child) > before, f"{child} is started again")
    urls = [ready["router_operator"], ready["control_plane"]]
    urls += [cell["operator"] for cell in ready["cells"]]
    until(lambda: all(map(healthy, urls)), f"all is healthy after {child} died")
    until(lambda: ping(ready) == 200, f"the API answers after {child} died")


def child_pid(home: Home, child: str) -> int:
    """The process id, by command line and directory; for Postgres the postmaster."""
    if child.endswith(" postgres"):
        data = home.data / "cells" / child.removesuffix(" postgres") / "data"
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    package = {"router": "router", "control plane": "control_plane"}.get(child, "cell")
    (pid,) = [pid for pid in home.processes() if runs(pid, package, child)]
    return pid


def runs(pid: int, package: str, child: str) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if command[2:4] != ["-m", package]:
        return False
    return package != "cell" or f"CLOISTER_CELL_NAME={child}\0" in environment(pid)


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text() + "\0"


def restarts(home: Home, child: str) -> int:
    lines = map(json.loads, home.log("supervisor.log").splitlines())
    return sum(line["message"] == "child restarted" and line["child"] == child for line in lines)


async def test_a_revoked_or_lost_demo_key_is_replaced(
    platform: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, ready = platform
    monkeypatch.setattr("infra.local.demo.REFUSED_S_MAX", 0.2)
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        maker = DemoMaker(
            data=open_data_directory(home.data),
            client=client,
            control_url=ready["control_plane"],
            operator_token=json.loads((home.data / "secrets/tokens.json").read_text())["operator"],
            router_url=ready["router"],
            cells=frozenset(cell["name"] for cell in ready["cells"]),
        )
        first = await maker.ensure()
        assert first.api_key == ready["demo"]["api_key"]
        listed = (await maker.call("GET", "/v1/tenants/demo/keys")).json()
        for key in listed:
            await maker.call("DELETE", f"/v1/tenants/demo/keys/{key['key_id']}")
        second = await maker.ensure()
        (home.data / "secrets" / "demo.json").unlink()
        third = await maker.ensure()
    assert len({first.api_key, second.api_key, third.api_key}) == 3
    assert (second.organization_id, second.cell) == (first.organization_id, first.cell)
    ready["demo"]["api_key"] = third.api_key


def test_a_second_platform_on_the_directory_is_refused(platform: Running) -> None:
    home, ready = platform
    for more in ((), ("--detach",)):
        done = home.run("up", "--data", home.data, *ANY_PORTS, *more)
        assert done.returncode == 1
        assert f"pid {ready['pid']}" in done.stderr
        assert "cloister down" in done.stderr
    assert ping(ready) == 200


@pytest.mark.parametrize("flag", ["--router-port", "--control-port"])
def test_an_occupied_port_is_refused_by_number_and_flag(
    platform: Running, home: Home, flag: str
) -> None:
    _, ready = platform
    taken = ready["router"].rpartition(":")[2]
    other = "--control-port" if flag == "--router-port" else "--router-port"
    done = home.run("up", "--data", home.data, flag, taken, other, "0")
    assert done.returncode == 1
    assert f":{taken}" in done.stderr
    assert flag in done.stderr


# --- starting, stopping, being killed ----------------------------------------------------------


@contextmanager
def foreground(home: Home, *more: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`cloister up` as typed at a terminal, and what it printed until it was ready."""
    arguments = ("up", "--data", home.data, *ANY_PORTS, *more)
    with (
        (home.root / "stderr").open("w") as stderr,
        subprocess.Popen(
            home.command(*arguments),
            env=home.environ,
            cwd=home.root,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            printed = ""
            while "Stop it with" not in printed:
                line = process.stdout.readline()
                assert line, (home.root / "stderr").read_text()
                printed += line
            yield process, printed
        finally:
            # Only a test that failed has left it running.
            process.terminate()
            process.wait(DEADLINE_S)


def test_the_printed_program_runs_and_the_books_outlive_a_restart(home: Home) -> None:
    with foreground(home, "--file", home.one_cell()) as (process, printed):
        program = snippet(printed)
        assert run_program(program) == "1250 USD (exponent 2)\n"
        # As Ctrl-C: the whole group of the terminal gets the signal.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0, (home.root / "stderr").read_text()
    assert home.processes() == []
    (home.data / "cells" / "former").mkdir()
    with foreground(home, "--file", home.one_cell()) as (process, printed):
        assert "the topology does not name it" in (home.root / "stderr").read_text()
        again = snippet(printed)
        assert credentials(again) == credentials(program)
        client = "\n".join(again.splitlines()[: again.splitlines().index(")") + 1])
        count = "\nprint(sum(1 for _ in client.ledger_transactions.list()))"
        assert run_program(client + count) == "1\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def snippet(printed: str) -> str:
    start = printed.index("from modern_treasury")
    return printed[start : printed.index("Stop it with")]


def credentials(program: str) -> list[str]:
    return re.findall(r'(?:organization_id|api_key)="([^"]+)"', program)


def run_program(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_cells_have_a_demo_tenant_of_their_own(home: Home) -> None:
    first = home.up("--file", home.one_cell())
    home.down()
    (home.root / "other.yaml").write_text(ONE_CELL.replace("only", "other"))
    second = home.up("--file", "other.yaml")
    assert (first["demo"]["cell"], second["demo"]["cell"]) == ("only", "other")
    assert ping(second) == 200
    home.down()
    third = home.up("--file", home.one_cell())
    assert third["demo"] == first["demo"]
    home.down()


def test_cells_that_take_no_tenants_are_said_to(home: Home) -> None:
    (home.root / "closed.yaml").write_text(ONE_CELL + "    accepts_tenants: false\n")
    done = home.run("up", "--data", home.data, *ANY_PORTS, "--file", "closed.yaml")
    assert done.returncode == 1
    assert "no cell takes new tenants; set accepts_tenants: true on one" in done.stderr
    assert "{" not in done.stderr


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_works(home: Home) -> None:
    first = home.up("--file", home.one_cell())
    os.kill(first["pid"], signal.SIGKILL)
    # At once: the next start waits for what is still ending.
    second = home.up("--file", home.one_cell())
    assert second["demo"] == first["demo"]
    assert second["cells"] == first["cells"], "internal ports are kept"
    assert ping(second) == 200
    os.kill(second["pid"], signal.SIGKILL)
    assert "No platform was running" in home.down()
    assert home.processes() == []


def test_a_start_that_fails_leaves_nothing_and_says_why(home: Home) -> None:
    # The catalog's database can start; that of the cell cannot.
    data = home.data / "cells" / "only" / "data"
    assert home.run("up", "--data", home.data, "--file", "missing.yaml").returncode == 1
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    for more in ((), ("--detach",)):
        done = home.run("up", "--data", home.data, *ANY_PORTS, "--file", home.one_cell(), *more)
        assert done.returncode == 1
        assert done.stderr.count("PostgreSQL 13, but") == 1, "said once, for people"
        assert "Traceback" not in done.stderr
        assert home.processes() == []


@pytest.mark.parametrize("stop", ["ctrl-c", "down"])
def test_an_interrupted_start_leaves_nothing(home: Home, stop: str) -> None:
    stderr = home.root / "stderr"
    with (
        stderr.open("w") as file,
        subprocess.Popen(
            home.command("up", "--data", home.data, *ANY_PORTS, "--file", home.one_cell()),
            env=home.environ,
            stdout=subprocess.PIPE,
            stderr=file,
        ) as process,
    ):
        try:
            until(lambda: home.processes(), "the databases are being started")
            if stop == "ctrl-c":
                process.send_signal(signal.SIGINT)
            else:
                home.down()
            assert process.wait(DEADLINE_S) == 130, stderr.read_text()
        finally:
            process.kill()
    assert "before it was ready" in stderr.read_text()
    assert home.processes() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cells: {a: {zonne: x}}", r"bad\.yaml:1: .*zonne"),
        ("cells: {a: {postgres: {parameters: {work_memm: 4MB}}}}", r"bad\.yaml:1: .*work_mem"),
        ("cells: [", r"bad\.yaml:\d+: "),
    ],
)
def test_a_bad_topology_is_refused_with_its_line(home: Home, text: str, said: str) -> None:
    (home.root / "bad.yaml").write_text(text)
    done = home.run("up", "--data", home.data, *ANY_PORTS, "--file", "bad.yaml")
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_binaries_that_do_not_exist_are_named_with_the_remedy(home: Home) -> None:
    done = home.run("up", "--data", home.data, "--detach", CLOISTER_PG_BINDIR="/nowhere")
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    assert "CLOISTER_PG_BINDIR" in done.stderr


def test_a_foreign_directory_is_left_alone(home: Home) -> None:
    (home.root / "photos").mkdir()
    (home.root / "photos" / "cat.jpg").touch()
    for command in ("up", "down"):
        done = home.run(command, "--data", home.root / "photos")
        assert done.returncode == 1
        assert "cat.jpg" in done.stderr
    assert [entry.name for entry in (home.root / "photos").iterdir()] == ["cat.jpg"]


@pytest.fixture
def small_disk(home: Home) -> Iterator[Path]:
    """The data directory, begun on a file system of one megabyte."""
    home.data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(home.data)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    open_data_directory(home.data)
    yield home.data
    subprocess.run(["umount", str(home.data)], check=True)


@pytest.mark.parametrize("left", [0, 64 << 10], ids=["for us", "for initdb"])
@pytest.mark.parametrize("more", [(), ("--detach",)], ids=["here", "detached"])
def test_a_full_disk_is_named_with_the_remedy(
    home: Home, small_disk: Path, left: int, more: tuple[str, ...]
) -> None:
    ballast = small_disk / "router" / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(ballast, ballast.stat().st_size - left)
    arguments = ("up", "--data", home.data, *ANY_PORTS, "--file", home.one_cell())
    done = home.run(*arguments, *more)
    assert done.returncode == 1
    assert f"error: the disk of {home.data} is full" in done.stderr
    assert done.stderr.count("Remedy: make room there") == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_costs_a_line_of_the_log_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = LogFile("/dev/full")
    log.handle(logging.makeLogRecord({"msg": "started"}))
    assert capsys.readouterr().err == ""
    with suppress(OSError):
        log.close()


def test_down_without_a_platform_succeeds_and_says_so(home: Home) -> None:
    assert "No platform was running" in home.down()
    assert not home.data.exists()


def test_an_occupied_port_of_the_topology_is_refused_by_its_key(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        port = blocker.getsockname()[1]
        (home.root / "fixed.yaml").write_text(ONE_CELL + f"    operator_port: {port}\n")
        done = home.run("up", "--data", home.data, "--file", "fixed.yaml", *ANY_PORTS, "--detach")
    assert done.returncode == 1
    assert f":{port}" in done.stderr
    assert "cells.only.operator_port in" in done.stderr
