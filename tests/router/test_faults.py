"""Nobody brings the router down from one side: not a client, a cell, or the control plane.

Method: the router, and the cells, as processes; real signals; many real connections. What is
asserted is what was answered and what is left behind, not how fast. Run by `make faults`.
"""

import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from conftest import Platform
from router_cells import METHODS
from router_clients import Client, request
from router_running import RouterProcess, free_port, http_get, router_process, table, wait_until

from router.app import raise_descriptor_limit
from router.table_file import encode_table

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("CLOISTER_TEST_SEED", "0")) or random.randrange(1, 1 << 32)
CROWD = 1_000
KEYED = request("POST", headers="Idempotency-Key: k\r\n", body=b"{}")


@contextmanager
def cell_process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    script = Path(__file__).with_name("counting_cell.py")
    with subprocess.Popen([sys.executable, str(script), str(port)]) as process:
        try:
            wait_until(lambda: listens(port), "the cell to listen")
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def metric(router: RouterProcess, line_start: str) -> float:
    _, body = http_get(router.operator_port, "/metrics")
    (line,) = [x for x in body.decode().splitlines() if x.startswith(line_start + " ")]
    return float(line.rsplit(" ", 1)[1])


class Load:
    """Clients that ask without pause, each on its own connection, for as long as told."""

    def __init__(self, port: int, tenant: str, clients: int, data: bytes | None = None) -> None:
        self.statuses: Counter[int] = Counter()
        self.latencies_s: list[float] = []
        self.pause_s = 0.0
        self._data = data or request("POST", tenant=tenant, body=b"{}")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(port,)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, port: int) -> None:
        with Client(port) as client:
            while not self._stop.is_set():
                began_s = time.monotonic()
                self.statuses[client.ask(self._data).status] += 1
                self.latencies_s.append(time.monotonic() - began_s)
                # A client's own pace, as SDKs pause before they repeat; waits for nothing.
                self._stop.wait(self.pause_s)

    @property
    def asked(self) -> int:
        return self.statuses.total()

    def end(self) -> Counter[int]:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client does not end"
        return self.statuses


@contextmanager
def two_cells(platform: Platform, **settings: int) -> Iterator[tuple[list[int], RouterProcess]]:
    """tenant-a on a cell that can be harmed, tenant-b on another; ports and the router."""
    with ExitStack() as parts:
        ports = [free_port(), free_port()]
        parts.enter_context(cell_process(ports[1]))
        placed = {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-b", 1)}
        platform.publish(1, placed, {"cell-a": ports[0], "cell-b": ports[1]})
        directory, control_port = platform.directory, platform.control_server.port
        log = directory / "router.log"
        running = router_process(directory, control_port, log=log, **settings)
        yield ports, parts.enter_context(running)


def ask_many(router: RouterProcess, count: int, tenant: str) -> Counter[int]:
    with Client(router.port) as client:
        return Counter(client.ask(request(tenant=tenant)).status for _ in range(count))


# -- clients


def trickle(port: int, count: int, first: bytes) -> list[socket.socket]:
    raise_descriptor_limit()
    crowd = []
    for _ in range(count):
        slow = socket.create_connection(("127.0.0.1", port), timeout=60)
        slow.sendall(first)
        crowd.append(slow)
    return crowd


SLOW_HEAD = b"GET /api/x HTTP/1.1\r\nHost: ledger.test\r\nX-Slow: "
SLOW_BODY = request("POST", headers=f"Content-Length: {CROWD * 1_000}\r\n")


@pytest.mark.parametrize("first", [SLOW_HEAD, SLOW_BODY], ids=["heads", "bodies"])
def test_slow_loris_leaves_others_unaffected(platform: Platform, first: bytes) -> None:
    # Long enough for all to have come before the first is ended, on a slow machine too.
    limits = {"header_ms_max": 15_000, "body_ms_max": 15_000}
    with two_cells(platform, **limits) as (_, router):
        crowd = {slow.fileno(): slow for slow in trickle(router.port, CROWD, first)}
        answered = select.poll()
        for descriptor in crowd:
            answered.register(descriptor, select.POLLIN)
        there = "cloister_router_client_connections"
        wait_until(lambda: metric(router, there) >= CROWD * 0.9, "the crowd")
        load = Load(router.port, "tenant-b", 4)
        ended = 0
        while crowd:
            for descriptor, _ in answered.poll(200):
                answered.unregister(descriptor)
                with crowd.pop(descriptor) as slow, suppress(ConnectionError):
                    ended += slow.recv(100).startswith(b"HTTP/1.1 408 ")
            for slow in crowd.values():
                with suppress(OSError):  # being refused; read in the next round
                    slow.sendall(b"x")
        statuses = load.end()
        assert set(statuses) == {200} and statuses.total() > 50
        # The last word can be lost to a byte that crosses it on the way.
        assert ended >= CROWD * 0.9
        wait_until(lambda: metric(router, there) == 0, "all to be gone")
        assert metric(router, "cloister_router_buffered_bytes") == 0


def test_thousands_of_connections_leave_nothing_behind(platform: Platform) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    with two_cells(platform) as (_, router):
        fds = Path(f"/proc/{router.process.pid}/fd")

        def crowd(number: int) -> None:
            for _ in range(number):
                come_and_go(router.port, chance)
            wait_until(
                lambda: metric(router, "cloister_router_client_connections") == 0, "all to be gone"
            )

        crowd(CROWD)  # warm: pools, code, arenas
        descriptors, memory = len(list(fds.iterdir())), resident_kib(router.process.pid)
        crowd(CROWD)
        crowd(CROWD)
        wait_until(lambda: len(list(fds.iterdir())) <= descriptors + 2, "descriptors")
        assert metric(router, "cloister_router_buffered_bytes") == 0
        assert metric(router, 'cloister_router_in_flight{cell="cell-b"}') == 0
        # Two thousand connections that kept one buffer of 16 KiB each would be twice that.
        assert resident_kib(router.process.pid) - memory < 16 * 1024
        assert ask_many(router, 20, "tenant-b") == {200: 20}


def come_and_go(port: int, chance: random.Random) -> None:
    """Connect, say a part of something, perhaps read a part of the answer, leave in some way."""
    method = chance.choice(METHODS)
    data = request(method, tenant="tenant-b", body=b"x" * chance.randrange(20_000))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one:
        one.sendall(data[: chance.choice((0, 1, 40, 150, len(data) // 2, len(data), len(data)))])
        leaving = chance.randrange(3)
        if leaving == 0:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif leaving == 1:
            one.shutdown(socket.SHUT_WR)


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


# -- cells


def test_stopped_cell_is_its_tenants_trouble_alone(platform: Platform) -> None:
    """SIGSTOP: it accepts connections and says nothing. Then it goes on, and so do its tenants."""
    limits = {"request_ms_max": 4_000, "cell_wait_ms_max": 200}
    with (
        two_cells(platform, **limits) as (ports, router),
        cell_process(ports[0]) as cell,
    ):
        assert ask_many(router, 20, "tenant-a") == {200: 20}
        cell.send_signal(signal.SIGSTOP)
        # More than the places of the cell's pool: the bulkhead is full, the breaker open.
        crowd = Load(router.port, "tenant-a", 100)
        crowd.pause_s = 0.05
        wait_until(lambda: metric(router, 'cloister_router_breaker_open{cell="cell-a"}'), "opening")
        well = Load(router.port, "tenant-b", 4)
        wait_until(lambda: well.asked > 100, "the other tenant's requests")
        assert set(well.end()) == {200}
        cell.send_signal(signal.SIGCONT)
        wait_until(lambda: ask_many(router, 5, "tenant-a") == {200: 5}, "the way back")
        statuses = crowd.end()
        assert set(statuses) <= {200, 502, 503, 504}
        assert metric(router, 'cloister_router_breaker_open{cell="cell-a"}') == 0
        assert ask_many(router, 50, "tenant-a") == {200: 50}


def test_killed_cell_returns_without_a_storm(platform: Platform) -> None:
    """What it meets on its return is what clients asked, and hardly more."""
    with two_cells(platform) as (ports, router):
        with cell_process(ports[0]) as cell:
            load = Load(router.port, "tenant-a", 8, KEYED)
            load.pause_s = 0.02
            wait_until(lambda: load.statuses[200] > 50, "traffic")
            cell.kill()
        opened = 'cloister_router_breaker_opened_total{cell="cell-a"}'
        wait_until(lambda: metric(router, opened), "the breaker to open")
        before = load.asked
        wait_until(lambda: load.asked > before + 50, "refusals")
        before, served = load.asked, load.statuses[200]
        with cell_process(ports[0]):
            wait_until(lambda: load.statuses[200] > served + 100, "traffic again")
            statuses = load.end()
            with Client(ports[0]) as direct:
                seen = direct.ask(request(target="/count")).json["requests"]
            assert seen <= 1.2 * (load.asked - before) + 16
            assert ask_many(router, 50, "tenant-a") == {200: 50}
        # 502: on its way when the cell died, and the resend found it dead.
        assert set(statuses) <= {200, 502, 503}
        assert ask_many(router, 50, "tenant-b") == {200: 50}


def test_cell_killed_again_and_again(platform: Platform) -> None:
    with two_cells(platform) as (ports, router):
        load = Load(router.port, "tenant-a", 8, KEYED)
        load.pause_s = 0.01
        well = Load(router.port, "tenant-b", 2)
        well.pause_s = 0.01
        for _ in range(3):
            served = load.statuses[200]
            with cell_process(ports[0]) as cell:
                wait_until(lambda s=served: load.statuses[200] > s + 20, "traffic")
                cell.kill()
        assert set(load.end()) <= {200, 502, 503}
        assert set(well.end()) == {200}


# -- the control plane


def test_router_restarts_from_disk_with_many_tenants(platform: Platform) -> None:
    """A hundred thousand of them, killed in the middle of traffic, the control plane dead."""
    directory, port = platform.directory, free_port()
    tenants = {f"0190a5d8-0000-7000-8000-{i:012d}": ("cell-a", 1) for i in range(100_000)}
    body = msgspec.json.encode(table(1, {"tenant-a": ("cell-a", 1), **tenants}, {"cell-a": port}))
    (directory / "routing-table").write_bytes(encode_table(body))
    with cell_process(port):
        for _ in range(2):
            with router_process(directory, free_port(), log=directory / "log") as router:
                load = Load(router.port, "tenant-a", 4)
                wait_until(lambda load=load: load.asked > 100, "traffic")
                assert ask_many(router, 1, next(iter(tenants))) == {200: 1}
                assert ask_many(router, 1, "nobody") == {503: 1}
                assert set(load.end()) == {200}
                router.process.kill()
                router.process.wait()
