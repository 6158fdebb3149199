"""Which requests are sent a second time, and which answers promise what.

Method: the decisions as tables; then cells that die at each point of an exchange, and the count of
what they were sent. A write without a key must never be seen twice.
"""

import threading
import time

import pytest
from conftest import Platform
from router_cells import CellSide, ScriptedCell, answer_all
from router_clients import request
from router_running import RunningRouter, free_port, wait_until

from router.exchange import Loss
from router.forward import Next, after_loss

KEYED = request("POST", headers="Idempotency-Key: k\r\n", body=b"{}")
UNKEYED = request("POST", body=b"{}")


@pytest.mark.parametrize(
    ("loss", "answering", "repeatable", "exposed", "budget", "then"),
    [
        (Loss.CONNECT, False, False, False, True, Next.RESEND_LATER),
        (Loss.CONNECT, False, True, False, True, Next.RESEND_LATER),
        (Loss.CONNECT, False, False, False, False, Next.UNREACHABLE),
        (Loss.CONNECT, False, True, True, False, Next.UNKNOWN),
        (Loss.SILENT, False, True, True, True, Next.RESEND),
        (Loss.SILENT, False, True, True, False, Next.UNKNOWN),
        (Loss.SILENT, False, False, True, True, Next.UNKNOWN),
        (Loss.BROKEN, False, True, True, True, Next.UNKNOWN),
        (Loss.UNUSABLE, False, True, True, True, Next.UNKNOWN),
        (Loss.BROKEN, True, True, True, True, Next.CUT),
        (Loss.UNUSABLE, True, False, True, True, Next.CUT),
    ],
)
def test_after_loss(
    loss: Loss, answering: bool, repeatable: bool, exposed: bool, budget: bool, then: Next
) -> None:
    decision = after_loss(
        loss,
        answering=answering,
        repeatable=repeatable,
        exposed=exposed,
        may_resend=lambda: budget,
    )
    assert decision is then


def test_budget_is_not_spent_where_nothing_is_sent_again() -> None:
    def spend() -> bool:
        raise AssertionError("asked for nothing")

    for loss, answering, repeatable in (
        (Loss.SILENT, False, False),
        (Loss.BROKEN, False, True),
        (Loss.UNUSABLE, True, True),
    ):
        after_loss(loss, answering=answering, repeatable=repeatable, exposed=True, may_resend=spend)


class Dying:
    """A cell whose connections, in turn, die as told and then answer."""

    def __init__(self, *deaths: str) -> None:
        self.deaths = list(deaths)
        self.requests: list[str] = []

    def __call__(self, side: CellSide) -> None:
        while (seen := side.request()) is not None:
            self.requests.append(seen.header("cloister-request-id") or "")
            death = self.deaths.pop(0) if self.deaths else "answer"
            if death == "answer":
                side.answer()
            elif death == "close":
                return
            elif death == "reset":
                side.reset()
                return
            elif death == "half":
                side.say(b"HTTP/1.1 200 OK\r\ncontent-le")
                return
            elif death == "hang":
                side.request()


def dying(platform: Platform, *deaths: str, **settings: int) -> tuple[Dying, RunningRouter]:
    script = Dying(*deaths)
    platform.route_all_to(platform.scripted_cell(script).port)
    return script, platform.router(**settings)


@pytest.mark.parametrize("death", ["close", "reset"])
@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "new"])
@pytest.mark.parametrize(
    "data", [KEYED, request("GET"), request("HEAD")], ids=["key", "GET", "HEAD"]
)
def test_repeatable_request_is_sent_again_once(
    platform: Platform, death: str, warm: bool, data: bytes
) -> None:
    cell, router = dying(platform, *["answer"] * warm, death)
    client = platform.client(router)
    if warm:
        assert client.ask(UNKEYED).status == 200
    assert client.ask(data, bodiless=data.startswith(b"HEAD")).status == 200
    assert len(cell.requests) == 2 + warm
    assert cell.requests[-1] == cell.requests[-2]
    assert router.metric('cloister_router_resends_total{cell="cell-a"}') == 1


@pytest.mark.parametrize("death", ["close", "reset"])
@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "new"])
def test_write_without_key_is_never_sent_twice(platform: Platform, death: str, warm: bool) -> None:
    cell, router = dying(platform, *["answer"] * warm, death)
    client = platform.client(router)
    if warm:
        assert client.ask(UNKEYED).status == 200
    answer = client.ask(UNKEYED)
    assert (answer.status, answer.code) == (502, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert len(cell.requests) == 1 + warm
    assert router.metric('cloister_router_losses_total{cause="silent",cell="cell-a"}') == 1


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "PUT"])
def test_clients_may_repeat_what_creates_nothing(platform: Platform, method: str) -> None:
    cell, router = dying(platform, "close")
    answer = platform.client(router).ask(request(method, body=b"{}"))
    assert (answer.status, answer.headers["x-should-retry"]) == (502, "true")
    assert len(cell.requests) == 1


def test_second_loss_is_not_sent_a_third_time(platform: Platform) -> None:
    cell, router = dying(platform, "close", "close", "close")
    answer = platform.client(router).ask(KEYED)
    assert (answer.status, answer.code) == (502, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "true"
    assert len(cell.requests) == 2


def test_answer_begun_is_not_asked_for_again(platform: Platform) -> None:
    cell, router = dying(platform, "half")
    assert platform.client(router).ask(KEYED).status == 502
    assert len(cell.requests) == 1


def test_late_answer_is_504_and_its_connection_is_dropped(platform: Platform) -> None:
    cell, router = dying(platform, "hang", request_ms_max=200)
    client = platform.client(router)
    answer = client.ask(UNKEYED)
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert client.ask(KEYED).status == 200
    assert len(cell.requests) == 2


def test_deadline_covers_the_resend(platform: Platform) -> None:
    cell, router = dying(platform, "close", "hang", request_ms_max=400)
    began = time.monotonic()
    assert platform.client(router).ask(KEYED).status == 504
    assert time.monotonic() - began < 10
    assert len(cell.requests) == 2


def test_refused_connection_is_tried_again_then_503(platform: Platform) -> None:
    platform.route_all_to(free_port())
    router = platform.router()
    client = platform.client(router)
    answer = client.ask(UNKEYED)
    assert (answer.status, answer.code) == (503, "cell_unreachable")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-should-retry"] == "true"
    assert "connection" not in answer.headers
    assert router.metric('cloister_router_losses_total{cause="connect",cell="cell-a"}') == 2


def test_cell_that_comes_back_during_the_pause_is_used(platform: Platform) -> None:
    port = free_port()
    platform.route_all_to(port)
    router = platform.router()
    client = platform.client(router)
    client.send(UNKEYED)
    wait_until(lambda: router.router.routes.pools[0].resends, "the first attempt to fail")
    with ScriptedCell(answer_all, port=port).listening() as cell:
        assert client.answer().status == 200
        assert cell.connections == 1


def test_resent_request_that_finds_the_cell_gone_is_of_unknown_outcome(
    platform: Platform,
) -> None:
    """Nothing was sent the second time; but the first time it was."""
    gone = threading.Event()

    def script(side: CellSide) -> None:
        if side.request() is not None:
            gone.wait(5)

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    client = platform.client(platform.router())
    client.send(KEYED)
    wait_until(lambda: cell.connections, "the request to be sent")
    cell.refuse()
    gone.set()
    answer = client.answer()
    assert (answer.status, answer.code) == (502, "outcome_unknown")


def test_resends_are_bounded_by_the_budget(platform: Platform) -> None:
    """A dying cell meets a few resends per second, not each request twice."""
    cell, router = dying(platform, *["close"] * 1000)
    clients = [platform.client(router) for _ in range(20)]
    for client in clients:
        client.send(KEYED)
    # Those that came when the breaker was open were not sent at all.
    statuses = [client.answer().status for client in clients]
    assert set(statuses) <= {502, 503}
    assert 5 <= len(cell.requests) <= statuses.count(502) + 2 * 3


def test_pooled_connections_closed_by_the_cell_cost_nothing(platform: Platform) -> None:
    """A cell that ends its idle connections in good order: no request is lost to it."""

    def script(side: CellSide) -> None:
        side.request()
        side.answer()

    cell = platform.scripted_cell(script)
    platform.route_all_to(cell.port)
    router = platform.router()
    client = platform.client(router)
    for index in range(5):
        assert client.ask(UNKEYED).status == 200
        wait_until(lambda: not router.router.routes.pools[0].open_connections, "the end")
        assert cell.connections == index + 1
    assert router.metric('cloister_router_losses_total{cause="silent",cell="cell-a"}') == 0


# -- verdicts


def test_table_that_sends_in_circles_is_left_after_two_hops(platform: Platform) -> None:
    seen: list[str] = []

    def script(side: CellSide) -> None:
        while (request_seen := side.request()) is not None:
            seen.append(request_seen.header("cloister-epoch") or "")
            raise_epoch(int(seen[-1]) + 1)
            side.answer(421, "cloister-not-applied: moved\r\n")

    def raise_epoch(epoch: int) -> None:
        platform.publish(epoch, {"tenant-a": ("cell-a", epoch)}, cells)
        wait_until(lambda: router.router.routes.version == epoch, "the table")

    cells: dict[str, int | str] = {"cell-a": platform.scripted_cell(script).port}
    platform.publish(1, {"tenant-a": ("cell-a", 1)}, cells)
    router = platform.router()
    assert platform.client(router).ask(UNKEYED).status == 503
    assert seen == ["1", "2", "3"]


def test_refusal_by_overload_is_passed_on(platform: Platform) -> None:
    """The cell has more to do than it can: sending again would be more still."""
    headers = "cloister-not-applied: overloaded\r\nretry-after: 3\r\n"
    cell = platform.scripted_cell(lambda side: answer_all(side, status=429, headers=headers))
    platform.route_all_to(cell.port)
    answer = platform.client(platform.router()).ask(UNKEYED)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert not any(name.startswith("cloister-") for name in answer.headers)
