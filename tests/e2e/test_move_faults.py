"""Moves of a tenant in traffic, each struck at one of its steps; nothing may be lost by it.

Method: a fault is drawn from the seed and strikes real processes; a second control plane takes over
where the first one stands still. When the move has come to its end, what clients were told is
compared with both journals. A single one again: `-k 'seed17'`; how many: CLOISTER_FAULT_SEEDS.
"""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from move_faults import ALWAYS_PASSED, Client, Fault, disarm, strike
from move_history import History, Holding, problems_of
from processes import Processes

from cell.journal import decode_body
from cell.tables import TENANT_TABLES
from control_plane.client import OperatorClient
from control_plane.errors import PlatformRefused, PlatformUnavailable
from control_plane.move.cell_heads import read_head
from control_plane.move.heads import HeadState
from control_plane.move.tail import SegmentRow
from control_plane.routing import CellName
from control_plane.wire import MoveReport, is_finished

SEEDS = int(os.environ.get("CLOISTER_FAULT_SEEDS", "100"))
QUICK = (7, 12, 13, 23, 36)
"""Seeds that strike the mover, a cell, its database and the router, and are done within seconds;
the others are for `make faults`."""
CLIENTS = 3
CROSSING = 20
MOVES_OF_A_TENANT = 8
DEADLINE_S = 300.0
CELLS = (CellName("cell-a"), CellName("cell-b"))


class Story:
    """One tenant with its clients, moved from cell to cell."""

    def __init__(self, platform: Any, operator: OperatorClient, deputy: "Deputy") -> None:
        self.platform, self.operator, self.deputy = platform, operator, deputy
        self.processes = Processes(platform.home / "data")
        self.numbers = itertools.count()
        self.begin()

    def begin(self) -> None:
        """With a new tenant: one that is always written to takes longer to move each time."""
        self.slug = f"acme-{next(self.numbers)}"
        self.moves = 0
        self.tenant = self.platform.create_tenant(self.slug)
        with self.tenant.client() as client:
            ledger = client.ledgers.create(name="Main")
            accounts = [
                client.ledger_accounts.create(
                    name=f"Account {number}",
                    ledger_id=ledger.id,
                    normal_balance="credit",
                    currency="EUR",
                ).id
                for number in range(CLIENTS + 1)
            ]
        self.clients = [
            Client(f"client {number}", self.tenant, [accounts[0], accounts[number + 1]])
            for number in range(CLIENTS)
        ]

    def verify(self) -> None:
        """The whole ledger is right, and holds what the clients were told and no more."""
        report = self.tenant.verify()
        assert report["ok"], report
        assert report["transactions"] == sum(
            sum(map(bool, client.acknowledged.values())) for client in self.clients
        )

    def move(self, fault: Fault) -> MoveReport:
        """Move the tenant to its other cell under the fault; the last report of the move."""
        self.moves += 1
        source = next(
            each.cell for each in self.ask(self.operator.tenants) if each.tenant == self.slug
        )
        target = next(cell for cell in CELLS if cell != source)
        assert source is not None
        fault.arm(self.platform.fail_points)
        planned = self.plan(target)
        reached = False
        deadline_s = time.monotonic() + DEADLINE_S
        for turn in itertools.count():
            if not reached and fault.is_reached(self.platform.fail_points):
                reached = True
                strike(fault, self.processes, source, target)
            if turn % 50 == 0:
                report = self.ask(lambda: self.operator.move(planned))
                if is_finished(report):
                    return report
            assert time.monotonic() < deadline_s, f"{fault}: {report}"
            time.sleep(0.005)
        raise AssertionError

    def plan(self, target: CellName) -> UUID:
        return self.ask(
            lambda: self.operator.create_move(self.slug, target, window_s=0, max_pause_ms=60_000)
        ).move_id

    def ask(self, question: Callable[[], Any]) -> Any:
        """Asked until the control plane is there to answer."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                return question()
            except (PlatformUnavailable, PlatformRefused) as exc:
                is_back_soon = isinstance(exc, PlatformUnavailable) or exc.retryable
                if not is_back_soon or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)

    def wait_for_writes(self) -> None:
        """Every client goes on: each is told of one more write."""
        before = [len(client.acknowledged) for client in self.clients]
        deadline_s = time.monotonic() + DEADLINE_S
        for client, count in zip(self.clients, before, strict=True):
            while len(client.acknowledged) == count:
                assert client.error is None, client.error
                assert time.monotonic() < deadline_s, "writes are not taken again"
                time.sleep(0.01)

    def problems(self) -> list[str]:
        """What is not as the clients were told, or left over. Asked while no client writes."""
        for cell in CELLS:
            self.wait_for_database(cell)
        holdings = {cell: asyncio.run(self.holding(cell)) for cell in CELLS}
        seqs: dict[str, int] = {}
        for holding in holdings.values():
            for segment in holding.segments:
                for record in decode_body(segment.body).records:
                    if record.inserted:
                        seqs[getattr(record.inserted[0], "id", "")] = record.seq
        history = History()
        for client in self.clients:
            history.refused |= client.refused
            for key, ids in client.acknowledged.items():
                for id in ids:
                    history.acknowledge(key, seqs.get(id, -1))
        problems = problems_of(history, holdings)
        for cell, holding in holdings.items():
            head = holding.head
            if head is not None and head.heading.move_id is not None:
                problems.append(f"{cell} still has the move in its head")
            if head is not None and head.heading.state is not HeadState.OWNED:
                problems += self.left_over(cell)
        return problems

    def wait_for_database(self, cell: CellName) -> None:
        """The last fault may have killed it, and a move can end before it is back."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                psycopg.connect(self.platform.auditor_dsn(cell)).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline_s, f"the database of {cell} is not back"
                time.sleep(0.1)

    def wait_until_healthy(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.ask(self.operator.status).healthy:
            assert time.monotonic() < deadline_s, self.ask(self.operator.status)
            time.sleep(0.1)

    async def holding(self, cell: CellName) -> Holding:
        query = (
            "SELECT first_seq, last_seq, epoch, format, body, prev_hash, hash FROM journal"
            " WHERE tenant_id = %s ORDER BY first_seq"
        )
        tenant_id = UUID(self.tenant.organization_id)
        dsn = self.platform.auditor_dsn(cell)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            cursor = await connection.execute(query, (tenant_id,))
            segments = [SegmentRow(*row) for row in await cursor.fetchall()]
            return Holding(await read_head(connection, tenant_id), segments)

    def left_over(self, cell: CellName) -> list[str]:
        with psycopg.connect(self.platform.auditor_dsn(cell)) as connection:
            counts = {
                table: connection.execute(
                    f"SELECT count(*) FROM {table} WHERE tenant_id = %s".encode(),
                    (self.tenant.organization_id,),
                ).fetchone()
                for table in TENANT_TABLES
            }
        return [f"{cell} has rows left in {t}" for t, row in counts.items() if row and row[0]]


@pytest.fixture(scope="module")
def story(platform: Any) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CONFIG_HOME", platform.environ["XDG_CONFIG_HOME"])
        operator = OperatorClient(platform.ready["control_plane"])
    with operator, Deputy(platform) as deputy:
        story = Story(platform, operator, deputy)
        yield story
        # Whoever uses the platform next finds it well, with nothing armed.
        disarm(platform.fail_points)
        story.wait_until_healthy()


class Deputy:
    """A second control plane over the same catalog."""

    def __init__(self, platform: Any) -> None:
        (first,) = Processes(platform.home / "data").of("mover")
        environ = Path(f"/proc/{first}/environ").read_bytes().decode().split("\0")
        variables = dict(line.split("=", 1) for line in environ if line)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._environ = variables | {"CLOISTER_CONTROL_LISTEN": f"127.0.0.1:{port}"}
        self._log = platform.home / "deputy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Deputy":
        self.revive()
        return self

    def revive(self) -> None:
        """Start it, unless it lives."""
        if self._process is not None and self._process.poll() is None:
            return
        with self._log.open("ab") as log:
            command = [sys.executable, "-P", "-m", "control_plane"]
            self._process = subprocess.Popen(
                command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def drawn(seed: int) -> Any:
    marks = () if seed in QUICK else pytest.mark.faults
    return pytest.param(seed, marks=marks, id=f"seed{seed}")


@pytest.mark.parametrize("seed", [drawn(seed) for seed in range(SEEDS)])
def test_nothing_is_lost(seed: int, story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    fault = Fault.drawn(seed)
    story.deputy.revive()
    if story.moves == MOVES_OF_A_TENANT:
        story.verify()
        story.begin()
    for client in story.clients:
        client.longest_gap_s = 0.0
        client.start()
    try:
        story.wait_for_writes()
        report = story.move(fault)
        story.wait_for_writes()
    finally:
        for client in story.clients:
            client.stop()
    gap_ms = max(client.longest_gap_s for client in story.clients) * 1000
    if fault.point in ALWAYS_PASSED and report.decision == "commit":
        assert fault.is_reached(story.platform.fail_points), f"{fault.point} was never reached"
    with capsys.disabled():
        outcome = f"{report.decision}, longest gap {gap_ms:.0f} ms"
        print(f"\nseed {seed}, {fault}: {outcome}", end=" ", flush=True)
    assert story.problems() == []


@pytest.mark.faults
def test_twenty_tenants_cross_at_once(story: Story) -> None:
    """Ten each way between the same two cells, while movers take a few at a time."""
    operator, wanted = story.operator, {}
    for number in range(CROSSING):
        slug = f"crossing-{number}"
        story.ask(lambda slug=slug, cell=CELLS[number % 2]: operator.create_tenant(slug, cell))
        wanted[slug] = CELLS[(number + 1) % 2]
    left = dict(wanted)
    for _ in range(10):
        planned = {
            slug: story.ask(
                lambda slug=slug, cell=cell: operator.create_move(
                    slug, cell, window_s=0, max_pause_ms=60_000
                )
            ).move_id
            for slug, cell in left.items()
        }
        for slug, move_id in planned.items():
            *_, report = operator.watch_move(move_id, is_finished)
            # On a machine that stands still a pause may be too long; then once more.
            assert report.decision == "commit" or "of the fence" in str(report.reason), report
            if report.decision == "commit":
                del left[slug]
        if not left:
            break
    listed = {each.tenant: each.cell for each in story.ask(operator.tenants)}
    assert {slug: listed[slug] for slug in wanted} == wanted


def test_the_ledger_is_recomputed_in_the_end(story: Story) -> None:
    story.verify()
