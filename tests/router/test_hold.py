"""Requests of tenants that are moving: held, let go in order, given up in time.

Method: the epochs as tables; then a real router before cells that refuse with verdicts as a fenced,
a moved and a not yet active cell do. Every request a client sent is accounted for: executed once at
one cell, or refused with the promise that it was executed nowhere.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import Platform
from router_cells import CellSide, serving
from router_clients import Client, request
from router_running import RunningRouter, await_endings, router_process, wait_until

from control_plane.routing import Epoch, OrganizationId
from router import hold as hold_module
from router.hold import HOPS_MAX, LET_GO_MAX, Held, awaited_epoch, may_follow

PATIENCE = {"hold_ms_max": 60_000, "request_ms_max": 60_000}
"""For holds that are to end well, on however slow a machine."""
STATUS = {"fenced": 503, "moved": 421, "not_owner": 421}


@pytest.mark.parametrize(
    ("routed_by", "told", "awaited"), [(1, None, 2), (1, 1, 2), (1, 2, 2), (1, 5, 5), (5, 2, 6)]
)
def test_awaited_epoch(routed_by: int, told: int | None, awaited: int) -> None:
    assert awaited_epoch(Epoch(routed_by), None if told is None else Epoch(told)) == awaited


@pytest.mark.parametrize(
    ("known", "routed_by", "hops", "follow"),
    [(2, 1, 0, True), (1, 1, 0, False), (1, 2, 0, False), (3, 2, HOPS_MAX, False)],
)
def test_may_follow(known: int, routed_by: int, hops: int, follow: bool) -> None:
    assert may_follow(Epoch(known), Epoch(routed_by), hops) is follow


class MovingCell:
    """Executes what it owns; a fenced one still reads."""

    def __init__(self, verdict: str = "", epoch: int = 1) -> None:
        self.verdict = verdict
        """Of tenant-a; empty while it is owned. Others are always owned."""
        self.epoch = epoch
        self.executed: list[str] = []
        self.refused: list[str] = []
        self.at_work = 0
        self.gate = threading.Event()
        """Answers to writes wait for it."""
        self.gate.set()
        self._lock = threading.Lock()

    def __call__(self, side: CellSide) -> None:
        while (seen := side.request()) is not None:
            verdict = self.verdict if seen.header("cloister-tenant") == "tenant-a" else ""
            if verdict == "fenced" and seen.method == "GET":
                verdict = ""
            with self._lock:
                (self.refused if verdict else self.executed).append(seen.target)
                self.at_work += 1
            if verdict:
                said = f"cloister-not-applied: {verdict}\r\ncloister-epoch: {self.epoch}\r\n"
                side.answer(STATUS[verdict], said)
            else:
                self.gate.wait(20)
                side.answer()
            with self._lock:
                self.at_work -= 1


class Move:
    """tenant-a on its way from cell-a to cell-b, tenant-b on cell-a."""

    def __init__(self, platform: Platform, verdict: str = "fenced") -> None:
        self.platform = platform
        self.source, self.target = MovingCell(verdict, epoch=2), MovingCell("not_owner", epoch=2)
        self.cells: dict[str, int | str] = {
            "cell-a": platform.scripted_cell(self.source).port,
            "cell-b": platform.scripted_cell(self.target).port,
        }
        self.place("cell-a", 1, version=1)

    def place(self, cell: str, epoch: int, version: int) -> None:
        tenants = {"tenant-a": (cell, epoch), "tenant-b": ("cell-a", 1)}
        self.platform.publish(version, tenants, self.cells)

    def activate(self) -> None:
        self.target.verdict = ""

    def switch(self) -> None:
        """Decided, active at the target, the tombstone at the source."""
        self.activate()
        self.place("cell-b", 2, version=2)
        self.source.verdict = "moved"


def write(index: int, **options: object) -> bytes:
    return request("POST", f"/api/{index}", body=b"{}", **options)  # type: ignore[arg-type]


def send_writes(platform: Platform, router: RunningRouter, count: int) -> list[Client]:
    """Each on a connection of its own, in order: the next only once the one before is held."""
    clients = []
    hold = router.router.forwarder.hold
    before = hold.counts.held
    for index in range(count):
        client = platform.client(router)
        client.send(write(index))
        wait_until(lambda index=index: hold.counts.held > before + index, "one more to be held")
        clients.append(client)
    return clients


def assert_nothing_is_held(router: RunningRouter) -> None:
    hold = router.router.forwarder.hold
    wait_until(lambda: hold.tenants == 0, "the hold to be empty")
    assert (hold.waiting, hold.waiting_bytes) == (0, 0)


# -- ways in which a hold ends well


def test_fenced_writes_are_slow_but_served_by_the_new_owner(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE)
    clients = send_writes(platform, router, 20)
    assert router.metric("cloister_router_holding_tenants") == 1
    move.switch()
    assert [client.answer().status for client in clients] == [200] * 20
    assert sorted(move.target.executed) == sorted(f"/api/{index}" for index in range(20))
    assert move.source.executed == []
    assert router.metric("cloister_router_held_total") == 20
    assert router.metric('cloister_router_hold_ended_total{outcome="served"}') == 20
    assert router.metric("cloister_router_followed_total") == 20
    assert router.router.forwarder.hold.latest(OrganizationId("tenant-a")) == Held(Epoch(2), 20)
    assert router.metric("cloister_router_held_seconds_total") > 0
    assert_nothing_is_held(router)


def test_of_so_many_tenants_it_is_known_how_many_were_held(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_module, "REMEMBERED_MAX", 2)
    hold = platform.router().router.forwarder.hold
    tenants = [OrganizationId(name) for name in "abc"]
    for tenant, epoch in zip((*tenants[:2], *tenants), (2, 2, 3, 2, 2), strict=True):
        hold._remember(tenant, Epoch(epoch))
    # The one that moved longest ago gives way; another epoch is counted from the beginning.
    assert [hold.latest(tenant) for tenant in tenants] == [
        None,
        Held(Epoch(2), 2),
        Held(Epoch(2), 1),
    ]


def test_order_is_kept(platform: Platform) -> None:
    """One connection to the target carries them one by one, so that it sees the router's order."""
    move = Move(platform)
    router = platform.router(cell_connections_max=1, **PATIENCE)
    clients = send_writes(platform, router, 30)
    move.switch()
    assert [client.answer().status for client in clients] == [200] * 30
    assert move.target.executed == [f"/api/{index}" for index in range(30)]


def test_few_are_let_go_at_a_time(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE)
    clients = send_writes(platform, router, 20)
    move.target.gate.clear()
    move.switch()
    wait_until(lambda: move.target.at_work == LET_GO_MAX, "the first to be let go")
    assert router.router.forwarder.hold.waiting == 20 - LET_GO_MAX
    assert len(move.target.executed) == LET_GO_MAX
    move.target.gate.set()
    assert [client.answer().status for client in clients] == [200] * 20


def test_aborted_move_lets_them_go_at_the_same_cell(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE)
    clients = send_writes(platform, router, 5)
    move.source.verdict = ""
    move.place("cell-a", 2, version=2)
    assert [client.answer().status for client in clients] == [200] * 5
    assert len(move.source.executed) == 5
    assert_nothing_is_held(router)


@pytest.fixture
def unled(platform: Platform) -> Iterator[tuple[Move, RunningRouter]]:
    """A router whose control plane died after the first table."""
    move = Move(platform)
    with serving(platform.control.app) as control:
        router = platform.router(control_url=f"http://127.0.0.1:{control.port}", **PATIENCE)
    await_endings()
    yield move, router


def test_fence_lifted_while_the_control_plane_is_dead(
    platform: Platform, unled: tuple[Move, RunningRouter]
) -> None:
    """No table says so; one request tried again does."""
    move, router = unled
    clients = send_writes(platform, router, 12)
    move.source.verdict = ""
    assert [client.answer().status for client in clients] == [200] * 12
    assert router.metric("cloister_router_followed_total") == 0
    assert_nothing_is_held(router)


def test_a_closed_lane_costs_the_cell_a_few_tries(platform: Platform) -> None:
    """However many are held: one at a time, ever more rarely."""
    move = Move(platform)
    router = platform.router(hold_ms_max=1_000)
    clients = send_writes(platform, router, 30)
    assert {client.answer().status for client in clients} == {503}
    assert 30 < len(move.source.refused) <= 30 + 60


def test_target_that_is_not_active_yet(platform: Platform) -> None:
    """The table is ahead of the cell: its epoch will not grow, the cell's state will."""
    move = Move(platform)
    router = platform.router(**PATIENCE)
    clients = send_writes(platform, router, 10)
    move.place("cell-b", 2, version=2)
    wait_until(lambda: move.target.refused, "the target to be tried")
    move.activate()
    assert [client.answer().status for client in clients] == [200] * 10
    assert len(move.target.executed) == 10


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_moved_tenant_is_followed_without_waiting_for_a_poll(
    platform: Platform, method: str
) -> None:
    """Held polls bring no news here, as after a change made by another process."""
    move = Move(platform, "moved")
    router = platform.router(**PATIENCE)
    platform.control.holds_news = True
    move.switch()
    client = platform.client(router)
    assert client.ask(request(method, body=b"{}")).status == 200
    assert len(move.target.executed) == 1
    refused = len(move.source.refused)
    assert client.ask(request(method, body=b"{}")).status == 200
    assert len(move.source.refused) == refused


def test_table_older_than_the_verdict_is_not_enough(platform: Platform) -> None:
    """The cell has told of epoch 5: a table with epoch 3 is news, but not the news awaited."""
    move = Move(platform, "moved")
    move.source.epoch = 5
    router = platform.router(**PATIENCE)
    (client,) = send_writes(platform, router, 1)
    move.activate()
    move.place("cell-b", 5, version=3)
    assert client.answer().status == 200
    assert len(move.target.executed) == 1


def test_reads_and_other_tenants_go_on(platform: Platform) -> None:
    Move(platform)
    router = platform.router(**PATIENCE)
    held = send_writes(platform, router, 3)
    client = platform.client(router)
    for _ in range(20):
        assert client.ask(request()).status == 200
        assert client.ask(write(1, tenant="tenant-b")).status == 200
    assert router.router.forwarder.hold.waiting >= 2
    assert held


def test_back_and_forth_under_load(platform: Platform) -> None:
    """Ten moves while four clients write: every write is executed once, none refused."""
    move = Move(platform, "")
    router = platform.router(**PATIENCE)
    stop = threading.Event()
    statuses: list[int] = []

    def run(writer: int) -> None:
        with Client(router.port) as client:
            count = 0
            while not stop.is_set():
                statuses.append(client.ask(write(writer * 100_000 + count)).status)
                count += 1

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    cells = [("cell-a", move.source), ("cell-b", move.target)]
    for epoch in range(2, 12):
        (_, source), (name, target) = cells
        done = len(statuses)
        wait_until(lambda done=done: len(statuses) > done + 20, "traffic")
        source.epoch = target.epoch = epoch
        source.verdict = "fenced"
        wait_until(lambda: router.router.forwarder.hold.waiting, "a write to be held")
        move.place(name, epoch, version=epoch)
        target.verdict = ""
        source.verdict = "moved"
        cells.reverse()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    executed = move.source.executed + move.target.executed
    assert len(executed) == len(set(executed)) == len(statuses)


# -- bounds


def assert_safe_to_repeat(data: Client) -> None:
    answer = data.answer()
    assert (answer.status, answer.code) == (503, "not_applied")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")


@pytest.mark.parametrize(
    "bound", [{"hold_tenant_max": 4}, {"hold_max": 4}, {"hold_bytes_max": 8}], ids=str
)
def test_beyond_the_bounds_is_refused_at_once(platform: Platform, bound: dict[str, int]) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE, **bound)
    # While one is tried again it is not held, and leaves a place; so let it be refused for good.
    clients = [platform.client(router) for _ in range(8)]
    for index, client in enumerate(clients):
        client.send(write(index))
    wait_until(lambda: len(move.source.refused) >= 8, "all to be refused by the cell")
    full = 'cloister_router_hold_ended_total{outcome="full"}'
    wait_until(lambda: router.metric(full) >= 3, "refusals")
    move.switch()
    answers = [client.answer() for client in clients]
    assert {answer.status for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert len(refused) == router.metric(full)
    assert {(a.code, a.headers["x-should-retry"]) for a in refused} == {("not_applied", "true")}
    assert len(move.target.executed) == 8 - len(refused)
    assert_nothing_is_held(router)


def test_one_tenant_cannot_take_the_place_of_all(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(hold_tenant_max=2, **PATIENCE)
    for index in range(6):
        platform.client(router).send(write(index))
    client = platform.client(router)
    for _ in range(20):
        assert client.ask(write(9, tenant="tenant-b")).status == 200
    assert move.target.executed == []


def test_held_for_too_long_is_given_up(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(hold_ms_max=500)
    began = time.monotonic()
    clients = send_writes(platform, router, 5)
    for client in clients:
        assert_safe_to_repeat(client)
    assert time.monotonic() - began >= 0.5
    assert move.source.executed == move.target.executed == []
    assert_nothing_is_held(router)
    assert router.metric('cloister_router_hold_ended_total{outcome="late"}') >= 4
    move.switch()
    assert clients[0].ask(write(1)).status == 200


def test_moved_tenant_of_which_no_table_tells_is_given_up(platform: Platform) -> None:
    move = Move(platform, "moved")
    router = platform.router(hold_ms_max=400)
    polls = platform.control.polls
    client = platform.client(router)
    client.send(write(1))
    assert_safe_to_repeat(client)
    assert 1 <= platform.control.polls - polls <= 10
    assert move.target.refused == []


def test_tenant_gone_from_the_table_is_refused(platform: Platform) -> None:
    Move(platform)
    router = platform.router(**PATIENCE)
    clients = send_writes(platform, router, 3)
    platform.publish(2, {"tenant-b": ("cell-a", 1)}, {"cell-a": 1})
    for client in clients:
        assert_safe_to_repeat(client)
    assert_nothing_is_held(router)


def test_request_perhaps_executed_before_is_not_promised_otherwise(platform: Platform) -> None:
    """Its first answer was lost; that the second attempt was fenced says nothing of the first."""

    def script(side: CellSide) -> None:
        if side.number > 0:
            cell(side)
        else:
            side.request()

    cell = MovingCell("fenced", epoch=2)
    platform.route_all_to(platform.scripted_cell(script).port)
    client = platform.client(platform.router(hold_ms_max=300))
    answer = client.ask(write(1, headers="Idempotency-Key: k\r\n"))
    assert (answer.status, answer.code) == (502, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "true"


# -- clients that leave, and the router's own end


def test_client_that_hangs_up_has_its_request_carried_out(platform: Platform) -> None:
    move = Move(platform)
    router = platform.router(**PATIENCE)
    for client in send_writes(platform, router, 3):
        # By a reset: one that merely says that it will send no more may still be listening.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    wait_until(lambda: not router.router.edge.connections, "the clients to be gone")
    move.switch()
    wait_until(lambda: len(move.target.executed) == 3, "their requests")
    assert_nothing_is_held(router)
    assert router.metric("cloister_router_buffered_bytes") == 0


def test_terminated_router_answers_what_it_holds(platform: Platform) -> None:
    move = Move(platform)
    with (
        router_process(platform.directory, platform.control_server.port, **PATIENCE) as running,
        Client(running.port) as client,
    ):
        client.send(write(1))
        wait_until(lambda: len(move.source.refused) > 1, "the request to be held")
        running.process.terminate()
        wait_until(lambda: not running.is_ready(), "the drain")
        move.switch()
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        running.process.communicate(timeout=60)
        assert running.process.returncode == 0
