"""One embedded Postgres: made once, then started and stopped any number of times.

An instance is a directory: `data/` (by its own initdb, never a copy: copies would share a system
identifier), `run/` (the socket), `passwords.json`. It listens on a Unix socket only, with scram
passwords. Nothing else may start Postgres on `data/`.

`Postgres.start` and `stop` serve tests and benchmarks; the supervisor runs the same server as one
of its children through `prepare`, `command` and `answers`. Finding binaries is `binaries.py`.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from control_plane.topology import PostgresSpec
from infra.errors import (
    DataDirectoryVersion,
    PostgresError,
    PostgresInUse,
    PostgresStartFailed,
)
from infra.local.binaries import BINDIR_VARIABLE, Binaries, unprivileged
from infra.local.private import (
    ensure_private_directory,
    generate_secret,
    sync_directory,
    write_private,
)
from infra.local.processes import log_tail, processes_running_in, tethered

SUPERUSER: Final = "postgres"
PORT: Final = 5432
"""Names the socket file; every instance has a socket directory of its own."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""The size of `sun_path` without its closing zero."""
MAX_WAL_SIZE_DEFAULT: Final = "1GB"
"""Postgres' own."""
INITDB_S_MAX: Final = 120.0
START_S_MAX: Final = 60.0
"""Long enough for crash recovery of some gigabytes of write-ahead log."""
FAST_STOP_S_MAX: Final = 30.0
IMMEDIATE_STOP_S_MAX: Final = 5.0
PREDECESSOR_S_MAX: Final = 40.0
"""How long processes of a killed or stopping server may still hold the data directory."""
PREDECESSOR_SERVING_S_MAX: Final = 3.0
"""How long a server that is *not* stopping may hold it: long enough for its signal to arrive."""
POLL_S: Final = 0.02
CONNECT_S_MAX: Final = 5
OWN_FILE: Final = "cloister.conf"


@dataclass(slots=True, kw_only=True)
class Postgres:
    """One instance. Not safe for concurrent use: whoever holds it owns the directory."""

    name: str
    """Shown by the server in its process titles and in our errors."""
    directory: Path
    """Absolute; created with mode 0700. The data directory is `data/` below it."""
    binaries: Binaries
    roles: Sequence[str] = ()
    """Roles to keep passwords for, beside the superuser; creating them is the caller's work."""
    sizing: PostgresSpec = field(default_factory=PostgresSpec)
    log_file: Path | None = None
    """Where the server's log goes; `postgres.log` in the directory by default."""
    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.log_file or self.directory / "postgres.log"

    @property
    def socket_directory(self) -> Path:
        return socket_directory(self.directory)

    def dsn(self, role: str, database: str) -> str:
        """A libpq connection string for the role; call `initialize` first."""
        return make_conninfo(
            host=str(self.socket_directory),
            port=PORT,
            user=role,
            password=self.passwords[role],
            dbname=database,
        )

    def superuser_dsn(self, database: str = "postgres") -> str:
        return self.dsn(SUPERUSER, database)

    def initialize(self) -> None:
        """Make passwords and the data directory where they do not exist yet; repeatable.

        Raises PostgresError with initdb's own words if it fails, and DataDirectoryVersion if the
        directory exists and was made by another major version.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        ensure_private_directory(self.directory)
        self.passwords = ensure_passwords(
            self.directory / "passwords.json", (SUPERUSER, *self.roles)
        )
        if self.data.exists():
            check_version(self.data, self.binaries)
        else:
            run_initdb(self.directory, self.binaries, self.passwords[SUPERUSER])

    def prepare(self) -> None:
        """Write the settings as they shall be and make the socket directory; repeatable.

        The caller has made sure that no server runs on the directory (`is_unused`).
        """
        check_version(self.data, self.binaries)
        remove_stale_lock(self.data)
        ensure_private_directory(self.socket_directory)
        text = render_settings(self.name, self.socket_directory, self.sizing)
        write_private(self.data / OWN_FILE, text)

    def command(self) -> list[str]:
        """The server's command line, for the thread that starts it.

        The server shuts down (fast) when that thread ends.
        """
        server = [self.binaries.path("postgres"), "-D", str(self.data)]
        return [*unprivileged(), *tethered(signal.SIGINT, server)]

    def answers(self) -> bool:
        """Whether the server accepts connections now."""
        try:
            with psycopg.connect(self.superuser_dsn(), connect_timeout=CONNECT_S_MAX):
                return True
        except psycopg.OperationalError:
            return False

    def start(self, ready_s: float = START_S_MAX, wait_s: float = PREDECESSOR_S_MAX) -> None:
        """Start the server and return when it accepts connections; `initialize` comes first.

        Recovers from a crash of the server or of its whole process tree. Raises PostgresInUse, or
        PostgresStartFailed with the end of the server's log. Call it from the main thread: the
        server stops when the calling thread ends.
        """
        if self.process is not None and self.process.poll() is None:
            raise PostgresInUse(f"Postgres {self.name} is running already, pid {self.process.pid}")
        wait_until_unused(self.data, wait_s)
        self.prepare()
        with self.log.open("ab") as log:
            log_start = log.tell()
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + ready_s
        while not self.answers():
            exited = self.process.poll()
            if exited is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
                continue
            self.stop(fast_s=IMMEDIATE_STOP_S_MAX)
            reason = f"did not answer within {ready_s:g} s" if exited is None else f"exit {exited}"
            raise PostgresStartFailed(
                f"Postgres {self.name} did not start ({reason}); the end of {self.log}:\n"
                + log_tail(self.log, log_start)
            )

    def stop(self, fast_s: float = FAST_STOP_S_MAX) -> None:
        """Stop the server: fast, then immediately, then by force; returns when it is gone."""
        process = self.process
        if process is None:
            return
        for stop_signal, wait_s in (
            (signal.SIGINT, fast_s),
            (signal.SIGQUIT, IMMEDIATE_STOP_S_MAX),
            (signal.SIGKILL, IMMEDIATE_STOP_S_MAX),
        ):
            if process.poll() is None:
                process.send_signal(stop_signal)
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
            self.process = None
            return
        raise PostgresError(f"Postgres {self.name}, pid {process.pid}, cannot be killed")

    def kill(self) -> None:
        """Kill the server as a crash would (tests); its backends may outlive it for a moment."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(IMMEDIATE_STOP_S_MAX)
        self.process = None


def ensure_passwords(path: Path, roles: Sequence[str]) -> dict[str, str]:
    """The roles' passwords from the file, generating and storing those that are missing."""
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
    missing = [role for role in roles if role not in known]
    if missing:
        known |= {role: generate_secret() for role in missing}
        write_private(path, msgspec.json.encode(known).decode())
    return known


def run_initdb(directory: Path, binaries: Binaries, password: str) -> None:
    """Make `directory/data`, which appears complete or not at all."""
    unfinished = directory / "data.unfinished"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    password_file = directory / "initdb-password"
    write_private(password_file, password + "\n")
    options = [
        f"--pgdata={unfinished}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        # The C locale exists everywhere and orders by bytes: no operating system update can ever
        # change an order that an index relies on.
        "--encoding=UTF8",
        "--locale=C",
        "--data-checksums",
        "--no-instructions",
    ]
    # Tethered as well: the next start removes what an interrupted one left, and must be alone.
    command = [
        *unprivileged(),
        *tethered(signal.SIGKILL, [binaries.path("initdb"), *options]),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INITDB_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise PostgresError(f"initdb in {directory} took more than {INITDB_S_MAX:g} s") from exc
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise PostgresError(f"initdb in {directory} failed: {done.stderr.strip()}")
    with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(f"\n# Last, so that it wins; rewritten at every start.\ninclude '{OWN_FILE}'\n")
    write_private(unfinished / OWN_FILE, "")
    unfinished.rename(directory / "data")
    sync_directory(directory)


def check_version(data: Path, binaries: Binaries) -> None:
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except OSError as exc:
        raise DataDirectoryVersion(f"{data} is no Postgres data directory: {exc}") from exc
    if found != str(binaries.major):
        raise DataDirectoryVersion(
            f"{data} was made by PostgreSQL {found}, but {binaries.directory} holds"
            f" {binaries.version}. Remedy: set {BINDIR_VARIABLE} to the binaries of PostgreSQL"
            f" {found}, or upgrade the directory with pg_upgrade"
        )


def wait_until_unused(data: Path, wait_s: float) -> None:
    """Return when no server process works in the data directory; raises PostgresInUse."""
    started = time.monotonic()
    while not is_unused(data, time.monotonic() - started, wait_s):
        time.sleep(POLL_S)


def is_unused(data: Path, waited_s: float, wait_s_max: float = PREDECESSOR_S_MAX) -> bool:
    """Whether no server process works in the directory; raises PostgresInUse once it is in vain.

    Cases: a postmaster that was told to stop, or backends that outlive a killed postmaster and
    still hold its shared memory, are waited for until the deadline. A postmaster that serves gets
    a short grace only: its owner may have died this instant and its signal be under way.
    """
    running = processes_running_in(data, "postgres")
    if not running:
        return True
    lock = read_lock(data)
    serving = lock is not None and lock.pid in running and lock.status != "stopping"
    if waited_s <= min(wait_s_max, PREDECESSOR_SERVING_S_MAX if serving else wait_s_max):
        return False
    pid = lock.pid if lock is not None and lock.pid in running else min(running)
    raise PostgresInUse(
        f"{data} is in use by another Postgres, pid {pid}. Remedy: stop its platform"
        f" (`cloister down`), or stop it with `kill -INT {pid}`"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What `postmaster.pid` says."""

    pid: int
    status: str
    """starting, stopping, ready or standby; empty while it is being written."""


def read_lock(data: Path) -> Lock | None:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return Lock(pid=int(lines[0]), status=lines[7].strip() if len(lines) > 7 else "")
    except (OSError, ValueError, IndexError):
        return None


def remove_stale_lock(data: Path) -> None:
    """Remove the lock file of a dead postmaster whose process id something else has by now.

    Postgres would take that process for its predecessor and refuse to start (in containers, where
    ids are small and repeat, for ever). The caller has made sure that no Postgres process works in
    the directory; where the id is free, Postgres itself does the rest.
    """
    lock = read_lock(data)
    if lock is not None and Path(f"/proc/{lock.pid}").exists():
        (data / "postmaster.pid").unlink(missing_ok=True)


def socket_directory(directory: Path) -> Path:
    """`run/` of the instance, or a private place with a short name where that path is too long.

    The short name is derived from the user and the path, so that every process finds the same one;
    whoever uses it checks that it is ours (`ensure_private_directory`).
    """
    own = directory / "run"
    if len(os.fsencode(own / f".s.PGSQL.{PORT}.lock")) <= SOCKET_PATH_BYTES_MAX:
        return own
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cloister-{os.geteuid()}-{digest}"


def render_settings(name: str, sockets: Path, sizing: PostgresSpec) -> str:
    """The text of our settings file; what the provider decides stands last and wins."""
    settings = {
        # Segments of the log are used again, as many as there may be. A new one is filled with
        # zeros and flushed first, and whoever commits waits for that, for up to 0.1 s.
        "min_wal_size": sizing.parameters.get("max_wal_size", MAX_WAL_SIZE_DEFAULT),
        **sizing.parameters,
        "shared_buffers": sizing.shared_buffers,
        "max_connections": str(sizing.max_connections),
        "listen_addresses": "",
        "port": str(PORT),
        # A list of names: double quotes keep a comma in the path from splitting it.
        "unix_socket_directories": '"' + str(sockets).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "cluster_name": name,
    }
    lines = [f"{key} = {quote_setting(value)}" for key, value in settings.items()]
    head = "# Written by cloister at every start, from cells.yaml. Changes here are lost."
    return "\n".join([head, *lines, ""])


def quote_setting(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise PostgresError(f"a Postgres setting cannot hold a line break: {value!r}")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
