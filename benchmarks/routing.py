"""How long routers need to learn, with two tenants and with a hundred thousand.

A whole platform, whose catalog is filled by SQL. One change is the limit of a tenant, asked of the
control plane's API; it has reached the router when the router's operator API shows it. With two
tenants in the table first, then with a hundred thousand: what is beyond the first is the table's
cost. Loading is what a router does with its disk copy at the start: reading, checking, judging,
adopting; without the interpreter's own start.
"""

import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec
import psycopg

from benchmarks.errors import Wrong
from benchmarks.machine import examine_machine
from benchmarks.percentiles import Latency, latency, median
from benchmarks.platform_process import Platform, part_of, running_platform, superuser_dsn
from benchmarks.report import Check, Progress, Report, Table, now_utc
from benchmarks.rounds import Effort
from benchmarks.server_process import process_tree
from control_plane.routing import OrganizationId
from infra.local.credentials import TOKENS_FILE, Tokens
from infra.local.plan import CATALOG_DATABASE
from router.app import Router
from router.settings import Address, Settings

TENANTS: Final = 100_000
TENANTS_QUICK: Final = 2_000
TENANTS_BEFORE: Final = 2
"""The platform's demo tenant, and the one whose limits are changed."""
CHANGES: Final = 60
CHANGES_QUICK: Final = 5
LEARNT_S_MAX: Final = 60.0
LOAD_MS_MAX: Final = 1_000.0
CHANGE_MS_MAX: Final = 20.0
MEMORY_MIB_MAX: Final = 150.0

# As placing them one by one would leave it, but for the versions in between.
FILL: Final = """
BEGIN;
ALTER TABLE placements DISABLE TRIGGER raise_routing_version;
UPDATE routing_version SET version = version + 1;
CREATE TEMPORARY TABLE made ON COMMIT DROP AS
    SELECT gen_random_uuid() AS id, number FROM generate_series(1, {count}) number;
INSERT INTO tenants (organization_id, slug, state, first_cell, attempt)
    SELECT id, 'filled-' || number, 'active', '{cell}', id FROM made;
INSERT INTO placements (organization_id, cell, epoch, changed_in)
    SELECT id, '{cell}', 1, version FROM made, routing_version;
ALTER TABLE placements ENABLE TRIGGER raise_routing_version;
COMMIT;
"""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured with so many tenants in the table."""

    tenants: int
    change: Latency
    """From the request to the control plane until the router shows its effect."""
    load_ms: float
    file_bytes: int
    memory_mib: float
    """Of the platform's router, resident."""


def run_routing(progress: Progress, effort: Effort) -> Report:
    machine = examine_machine()
    tenants = TENANTS_QUICK if effort.quick else TENANTS
    changes = CHANGES_QUICK if effort.quick else CHANGES
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as name:
        directory = Path(name)
        progress("starting the platform")
        with running_platform(directory) as platform:
            sizes = [measure(platform, TENANTS_BEFORE, changes, effort.times(), progress)]
            progress(f"placing {tenants:,} tenants")
            fill(directory, platform, tenants)
            tenants += TENANTS_BEFORE
            sizes.append(measure(platform, tenants, changes, effort.times(), progress))
    return Report(
        name="routing",
        quick=effort.quick,
        at=now_utc(),
        machine=machine,
        tables=[table(sizes)],
        checks=checks(sizes[-1]),
        runs=[msgspec.to_builtins(size) for size in sizes],
    )


def fill(directory: Path, platform: Platform, count: int) -> None:
    home = directory / "data" / "catalog"
    with psycopg.connect(
        superuser_dsn("catalog", home, CATALOG_DATABASE), autocommit=True
    ) as connection:
        connection.execute(FILL.format(count=count, cell=platform.tenant.cell).encode())
        connection.execute("VACUUM ANALYZE")


def measure(platform: Platform, tenants: int, changes: int, loads: int, progress: Progress) -> Size:
    with router_told_of(platform) as router:
        progress(f"{tenants:,} tenants: the router learns of them")
        await_tenants(platform, tenants)
        progress(f"{tenants:,} tenants: {changes} changes")
        took_s = [router.change(1_000 + number) for number in range(changes)]
    file = platform.directory / "data" / "router" / "routing-table.json"
    progress(f"{tenants:,} tenants: loading the disk copy")
    return Size(
        tenants=tenants,
        change=latency(took_s),
        load_ms=median(asyncio.run(load_ms(file, tenants)) for _ in range(loads)),
        file_bytes=file.stat().st_size,
        memory_mib=router_memory_mib(platform),
    )


class RouterTold:
    """The control plane and the router, as one who changes a limit and looks for its effect."""

    def __init__(self, platform: Platform, control: httpx.Client, router: httpx.Client) -> None:
        self.tenant = platform.tenant
        self.control = control
        self.router = router

    def change(self, rate: int) -> float:
        """Seconds until the router has it."""
        began_s = time.perf_counter()
        answer = self.control.put(
            f"/v1/tenants/{self.tenant.tenant}/limits", json={"requests_per_s": rate}
        )
        answer.raise_for_status()
        while self.shown() != rate:
            if time.perf_counter() - began_s > LEARNT_S_MAX:
                raise Wrong(f"the router did not learn of a limit in {LEARNT_S_MAX:.0f} s")
        return time.perf_counter() - began_s

    def shown(self) -> float | None:
        answer = self.router.get(f"/tenants/{OrganizationId(self.tenant.organization_id)}")
        rate: float | None = answer.raise_for_status().json()["requests_per_s_max"]
        return rate


@contextmanager
def router_told_of(platform: Platform) -> Iterator[RouterTold]:
    content = (platform.directory / "data" / "secrets" / TOKENS_FILE).read_bytes()
    tokens = msgspec.json.decode(content, type=Tokens)
    with (
        httpx.Client(
            base_url=platform.control, headers=bearer(tokens.operator), timeout=LEARNT_S_MAX
        ) as control,
        httpx.Client(
            base_url=platform.router_operator, headers=bearer(tokens.router), timeout=LEARNT_S_MAX
        ) as router,
    ):
        yield RouterTold(platform, control, router)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def await_tenants(platform: Platform, tenants: int) -> None:
    line = f"cloister_router_routing_tenants {float(tenants)}"
    end_s = time.monotonic() + LEARNT_S_MAX
    while True:
        with urllib.request.urlopen(f"{platform.router_operator}/metrics") as answer:
            if line in answer.read().decode().splitlines():
                return
        if time.monotonic() > end_s:
            raise Wrong(f"the router did not learn of {tenants:,} tenants")


async def load_ms(file: Path, tenants: int) -> float:
    """A router's start from its disk copy, in this process."""
    nowhere = Address("127.0.0.1", 0)
    settings = Settings(operator_listen=nowhere, token="", table_file=file)
    router = Router(settings)
    began_s = time.perf_counter()
    router.follower.start_from_disk()
    took_ms = (time.perf_counter() - began_s) * 1_000
    if router.routes.tenants != tenants:
        raise Wrong(f"the disk copy holds {router.routes.tenants:,} tenants, not {tenants:,}")
    return took_ms


def router_memory_mib(platform: Platform) -> float:
    assert platform.server.process is not None
    (pid,) = (
        process.pid
        for process in process_tree(platform.server.process.pid)
        if part_of(process.command) == "router"
    )
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(kib) / 1024


def table(sizes: list[Size]) -> Table:
    return Table(
        title="A router and its table",
        columns=(
            "tenants",
            "a change reaches it, p50 ms",
            "p99 ms",
            "loads its disk copy, ms",
            "disk copy, MiB",
            "memory, MiB",
        ),
        rows=[
            (
                size.tenants,
                round(size.change.p50_ms, 1),
                round(size.change.p99_ms, 1),
                round(size.load_ms, 1),
                round(size.file_bytes / 2**20, 1),
                round(size.memory_mib),
            )
            for size in sizes
        ],
        notes=("A change includes the request that asks for it and its commit in the catalog.",),
    )


def checks(size: Size) -> list[Check]:
    goals = (
        ("median ms until a change reaches the router", size.change.p50_ms, CHANGE_MS_MAX),
        ("ms to load the table from disk", size.load_ms, LOAD_MS_MAX),
        ("MiB of memory of the router", size.memory_mib, MEMORY_MIB_MAX),
    )
    return [
        Check(what=f"{what}, {size.tenants:,} tenants", value=value, goal=goal, at_most=True)
        for what, value, goal in goals
    ]
