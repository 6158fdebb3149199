"""The breaker: when it opens, what it lets through, how it finds back.

Method: the rules by hand-set times and chances; then a router before cells that refuse, hang and
return.
"""

import threading

import pytest
from conftest import Platform
from router_cells import CellSide, ScriptedCell, answer_all
from router_clients import request
from router_running import RunningRouter, free_port, wait_until

from router.breaker import (
    FAILURES_IN_A_ROW,
    OPEN_S,
    SHARE_REQUESTS_MIN,
    TRIALS_MAX,
    WINDOW_TICKS,
    Breaker,
)

MIDDLE = 0.5
"""The chance that leaves pauses as they are."""


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(now_s, MIDDLE)
    assert not breaker.is_closed
    return breaker


def test_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(3):
        assert not any(breaker.failed(0, MIDDLE) for _ in range(FAILURES_IN_A_ROW - 1))
        breaker.answered()
    assert breaker.is_closed
    assert [breaker.failed(0, MIDDLE) for _ in range(FAILURES_IN_A_ROW)][-1]
    assert breaker.opened == 1


@pytest.mark.parametrize(
    ("answers", "failures", "opens"),
    [
        (SHARE_REQUESTS_MIN, SHARE_REQUESTS_MIN, True),
        (SHARE_REQUESTS_MIN, SHARE_REQUESTS_MIN - 1, False),
        (SHARE_REQUESTS_MIN // 2 - 1, SHARE_REQUESTS_MIN // 2, False),
        (0, 0, False),
    ],
)
def test_opens_by_the_share_that_failed(answers: int, failures: int, opens: bool) -> None:
    breaker = Breaker()
    assert not breaker.tick(1_000, 0, MIDDLE)
    for _ in range(failures):
        breaker.failed(0.5, MIDDLE)
        breaker.answered()
    assert breaker.tick(1_000 + answers, 1, MIDDLE) is opens
    assert breaker.is_closed is not opens


def test_only_the_last_seconds_count() -> None:
    """Many answers of long ago do not outweigh the failures of now."""
    breaker = Breaker()
    breaker.tick(0, 0, MIDDLE)
    for second in range(1, WINDOW_TICKS + 2):
        assert not breaker.tick(10_000, second, MIDDLE)
    for _ in range(SHARE_REQUESTS_MIN):
        breaker.failed(20, MIDDLE)
        breaker.answered()
    assert breaker.tick(10_010, 20, MIDDLE)


def test_open_admits_nothing_then_a_few_trials() -> None:
    breaker = opened()
    assert not breaker.admits(OPEN_S[0] * 0.99, MIDDLE)
    assert not breaker.is_tried(0.0)
    now_s = OPEN_S[0] * 1.01
    assert breaker.is_tried(now_s)
    assert [breaker.admits(now_s, MIDDLE) for _ in range(TRIALS_MAX + 1)] == [
        *[True] * TRIALS_MAX,
        False,
    ]


def test_answer_closes_and_forgets() -> None:
    breaker = opened()
    breaker.answered()
    assert breaker.is_closed and breaker.admits(0, MIDDLE)
    assert not any(breaker.failed(1, MIDDLE) for _ in range(FAILURES_IN_A_ROW - 1))


def test_pauses_grow_to_a_bound_and_start_anew() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(5):
        before_s = now_s
        while not breaker.admits(now_s, MIDDLE):
            now_s += 0.001
        pauses.append(round(now_s - before_s, 1))
        breaker.failed(now_s, MIDDLE)
    assert pauses == [0.2, 0.4, 0.8, 0.8, 0.8]
    breaker.answered()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(now_s, MIDDLE)
    assert breaker.admits(now_s + OPEN_S[0] * 1.01, MIDDLE)


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 0.16), (0.5, 0.2), (0.999, 0.24)])
def test_pauses_differ_by_chance(chance: float, pause_s: float) -> None:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(0, chance)
    assert not breaker.admits(pause_s - 0.01, chance)
    assert breaker.admits(pause_s + 0.01, chance)


def test_failure_while_open_does_not_lengthen_the_pause() -> None:
    """Requests that were under way when it opened still fail, one by one."""
    breaker = opened()
    for _ in range(100):
        assert not breaker.failed(0.1, MIDDLE)
    assert breaker.admits(OPEN_S[0] * 1.01, MIDDLE)


# -- before a cell


OPENED = 'cloister_router_breaker_opened_total{cell="cell-a"}'
IS_OPEN = 'cloister_router_breaker_open{cell="cell-a"}'


def test_cell_that_returns_is_found_at_once(platform: Platform) -> None:
    port = free_port()
    platform.route_all_to(port)
    router = platform.router()
    client = platform.client(router)
    while router.metric(IS_OPEN) == 0:
        assert client.ask(request()).code == "cell_unreachable"
    attempts = router.metric('cloister_router_losses_total{cause="connect",cell="cell-a"}')
    refused = client.ask(request())
    assert (refused.status, refused.code) == (503, "cell_unreachable")
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == ("1", "true")
    assert router.metric(OPENED) == 1
    assert attempts <= 2 * FAILURES_IN_A_ROW
    with ScriptedCell(answer_all, port=port).listening():
        wait_until(lambda: client.ask(request()).status == 200, "the way back")
        assert router.metric(IS_OPEN) == 0
        assert all(client.ask(request()).status == 200 for _ in range(50))


class Standing:
    """A cell that accepts everything and answers nothing until told to."""

    def __init__(self) -> None:
        self.moving = threading.Event()

    def __call__(self, side: CellSide) -> None:
        while side.request() is not None:
            self.moving.wait(20)
            side.answer()


def standing(platform: Platform) -> tuple[Standing, RunningRouter]:
    cell = Standing()
    port, well = platform.scripted_cell(cell).port, platform.scripted_cell(answer_all).port
    placed = {"tenant-a": ("cell-a", 1), "tenant-b": ("cell-b", 1)}
    platform.publish(1, placed, {"cell-a": port, "cell-b": well})
    settings = {"cell_connections_max": 2, "cell_wait_ms_max": 100}
    return cell, platform.router(**settings)


def test_cell_that_stands_still_is_not_waited_for(platform: Platform) -> None:
    cell, router = standing(platform)
    clients = [platform.client(router) for _ in range(2 + FAILURES_IN_A_ROW)]
    for client in clients:
        client.send(request())
    wait_until(lambda: router.metric(IS_OPEN) == 1, "the breaker to open")
    assert platform.client(router).ask(request(tenant="tenant-b")).status == 200
    cell.moving.set()
    statuses = [client.answer().status for client in clients]
    assert sorted(statuses) == [200, 200, *[503] * FAILURES_IN_A_ROW]
    assert router.metric(IS_OPEN) == 0
    assert platform.client(router).ask(request()).status == 200


@pytest.mark.parametrize("status", [409, 422, 429, 500, 503])
def test_answers_of_any_kind_keep_it_closed(platform: Platform, status: int) -> None:
    cell = platform.scripted_cell(lambda side: answer_all(side, status=status))
    platform.route_all_to(cell.port)
    router = platform.router()
    client = platform.client(router)
    assert {client.ask(request()).status for _ in range(30)} == {status}
    assert router.metric(OPENED) == 0
