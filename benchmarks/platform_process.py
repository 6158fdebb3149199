"""A whole platform for a benchmark: `cloister up` in a directory of its own.

Of one cell, where moves are not what is measured: the machine's processors are few, and a second,
idle one would only add its Postgres' background work. Everything the platform needs (tokens, data,
ports) lives below the directory.
"""

import contextlib
import re
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.errors import NotReady, Wrong
from benchmarks.server_process import PROBE_S_MAX, Server, free_address, process_tree
from infra.local.binaries import find_binaries
from infra.local.postgres import SUPERUSER, Postgres, ensure_passwords

CELL: Final = "cell-a"
TENANT: Final = "bench"
CELL_SPEC: Final = """\
  {name}:
    zone: local-1
    accepts_tenants: true
    postgres:
      shared_buffers: {shared_buffers}
      max_connections: 60
      parameters: {{max_wal_size: 4GB}}
"""
SHARED_BUFFERS: Final = "512MB"
COMMAND_S_MAX: Final = 1_800.0
"""Of `verify` and `move` too, which recompute all that was written."""
PLATFORM_READY_S_MAX: Final = 90.0
PLATFORM_STOP_S_MAX: Final = 120.0
"""Above the sum of what an orderly stop may take: databases end last, and in order."""


class Tenant(msgspec.Struct, frozen=True):
    """What `cloister tenants create --json` prints."""

    tenant: str
    organization_id: str
    api_key: str
    cell: str


class CellAddresses(msgspec.Struct, frozen=True):
    operator: str
    """URL of the cell's metrics."""


class Ready(msgspec.Struct, frozen=True):
    """Of what `cloister up --json` prints once everything serves."""

    router_operator: str
    """URL of the router's metrics."""
    cells: list[CellAddresses]


class Batches(msgspec.Struct, frozen=True):
    """Counters of a cell's sequencer since its start."""

    batches: int
    commands: int

    def mean_since(self, before: "Batches") -> float | None:
        """Commands per batch; None where there was no batch."""
        batches = self.batches - before.batches
        return (self.commands - before.commands) / batches if batches else None


class PlatformServer(Server):
    """Ready when it says so: its ports answer some time before the cells serve."""

    def is_ready(self) -> bool:
        return self.ready() is not None

    def ready(self) -> Ready | None:
        for line in self.log.read_bytes().splitlines():
            if line.startswith(b'{"router"'):
                return msgspec.json.decode(line, type=Ready)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A running platform with one tenant."""

    router: str
    """host:port of the tenants' address."""
    tenant: Tenant
    server: Server
    environment: Mapping[str, str]

    router_operator: str
    """URL of the router's metrics."""
    cell_operator: str
    """URL of the first cell's metrics."""
    control: str
    """URL of the control plane."""
    directory: Path

    def create_tenant(self, slug: str) -> Tenant:
        """On the cell of the first one."""
        return create_tenant(self.environment, slug, self.tenant.cell)

    def mover_dsn(self, cell: str) -> str:
        """Of the cell's database, for who moves tenants."""
        content = (self.directory / "data" / "secrets" / "cells.json").read_bytes()
        cells = msgspec.json.decode(content)["cells"]
        return str(next(each["mover_dsn"] for each in cells if each["name"] == cell))

    def cell_metrics(self) -> str:
        """Of the first cell, as text."""
        with urllib.request.urlopen(f"{self.cell_operator}/metrics", timeout=PROBE_S_MAX) as answer:
            return str(answer.read(), "utf-8")

    def batches(self) -> Batches:
        text = self.cell_metrics()
        return Batches(
            counter(text, "cloister_cell_batches_total"),
            counter(text, "cloister_cell_commands_applied_total"),
        )

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds used so far by each part of the platform."""
        assert self.server.process is not None
        parts: dict[str, float] = defaultdict(float)
        for process in process_tree(self.server.process.pid):
            parts[part_of(process.command)] += process.cpu_s
        return dict(parts)


@contextlib.contextmanager
def running_platform(
    directory: Path, cells: Sequence[str] = (CELL,), *, shared_buffers: str = SHARED_BUFFERS
) -> Iterator[Platform]:
    """Start everything, create the tenant on the first cell, stop everything at the end."""
    router, control = free_address(), free_address()
    cells_file = directory / "cells.yaml"
    specs = [CELL_SPEC.format(name=name, shared_buffers=shared_buffers) for name in cells]
    cells_file.write_text("cells:\n" + "".join(specs))
    environment = {
        "XDG_CONFIG_HOME": str(directory / "config"),
        "CLOISTER_CONTROL_URL": f"http://{control}",
    }
    ports = ["--router-port", router.rpartition(":")[2], "--control-port", port_of(control)]
    command = [str(script()), "up", "--file", str(cells_file), "--data", str(directory / "data")]
    server = PlatformServer(
        "platform",
        [*command, *ports, "--json"],
        address=router,
        directory=directory,
        environment=environment,
        ready_s_max=PLATFORM_READY_S_MAX,
        stop_s_max=PLATFORM_STOP_S_MAX,
    )
    with server:
        ready = server.ready()
        assert ready is not None
        yield Platform(
            router=router,
            tenant=create_tenant(environment, TENANT, cells[0]),
            server=server,
            environment=environment,
            router_operator=ready.router_operator,
            cell_operator=ready.cells[0].operator,
            control=f"http://{control}",
            directory=directory,
        )


def create_tenant(environment: Mapping[str, str], slug: str, cell: str) -> Tenant:
    text = cloister(environment, "tenants", "create", slug, "--cell", cell, "--json")
    return msgspec.json.decode(text, type=Tenant)


def superuser_dsn(name: str, home: Path, database: str) -> str:
    """Of one of the platform's instances, by its name and directory."""
    postgres = Postgres(name=name, directory=home, binaries=find_binaries())
    postgres.passwords = ensure_passwords(home / "passwords.json", (SUPERUSER,))
    return postgres.superuser_dsn(database)


def counter(metrics: str, name: str) -> int:
    """The value of one counter in Prometheus' text format; the name is a regular expression."""
    found = re.search(rf"^{name} ([0-9.e+]+)$", metrics, re.MULTILINE)
    if found is None:
        raise Wrong(f"the cell's metrics hold no {name}")
    return int(float(found[1]))


def cloister(environment: Mapping[str, str], *arguments: str) -> str:
    """What the command printed; raises NotReady with its complaint when it fails."""
    done = subprocess.run(
        [str(script()), *arguments],
        env=Server.base_environment() | dict(environment),
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise NotReady(f"cloister {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def script() -> Path:
    return Path(sys.executable).with_name("cloister")


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


def part_of(command: list[str]) -> str:
    """Which part of the platform a process is, by its command line."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return "postgres" if "postgres" in command[0] else "supervisor"
