"""The load generator against real servers on sockets: counts, statuses, losses, intended times."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.errors import Wrong
from benchmarks.http_load import Load, LoadResult, RunningLoad, generate, run_load
from benchmarks.http_requests import Text, Unique, get, post

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = get("get", [Text("/")], {"host": "h"})


@asynccontextmanager
async def server(
    answer: bytes,
    pause_s: float = 0.0,
    requests_max: int = 1 << 30,
    answered: threading.Event | None = None,
) -> AsyncIterator[str]:
    """Answers every request the same, after a pause; closes a connection after so many."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(requests_max):
                await reader.readuntil(b"\r\n\r\n")
                if pause_s:
                    await asyncio.sleep(pause_s)
                writer.write(answer)
                if answered is not None:
                    answered.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}"


async def test_a_closed_loop_keeps_its_connections_busy_and_counts_answers() -> None:
    async with server(ANSWER) as address:
        load = Load(address=address, kinds=[GET], connections=4, seconds=0.5, warmup_s=0.05)
        result = await generate(load)
    (kind,) = result.kinds
    assert kind.answered > 4, "more than one for each connection"
    assert kind.rate == pytest.approx(kind.answered / 0.5)
    assert result.failures == 0
    assert kind.statuses.keys() == {"200"}
    assert kind.longest_gap_ms > 0
    assert 0 < kind.latency.p50_ms <= kind.latency.p99_ms


async def test_an_unexpected_status_is_counted() -> None:
    refusal = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
    async with server(refusal) as address:
        load = Load(address=address, kinds=[GET], connections=1, seconds=0.5, warmup_s=0)
        result = await generate(load)
    assert result.failures == sum(result.kinds[0].statuses.values()) > 0


async def test_a_closed_connection_loses_its_request_and_is_replaced() -> None:
    # Not so few that a fast machine meets the bound on closed connections.
    async with server(ANSWER, requests_max=100) as address:
        load = Load(address=address, kinds=[GET], connections=2, seconds=1.0, warmup_s=0)
        result = await generate(load)
    assert result.kinds[0].lost > 0
    assert result.kinds[0].answered > 200, "more than the first two connections answer"


async def test_an_open_loop_charges_a_slow_server_from_the_intended_time() -> None:
    """One connection, 50 ms per answer, 100 requests/s: each waits longer than the last."""
    async with server(ANSWER, pause_s=0.05) as address:
        load = Load(
            address=address,
            kinds=[GET],
            connections=1,
            seconds=0.3,
            warmup_s=0,
            rate=100,
            arrivals="even",
        )
        result = await generate(load)
    assert result.offered == pytest.approx(100, rel=0.1)
    assert result.rate < 30
    assert result.late > 10
    assert result.waiting_max > 10
    assert result.kinds[0].latency.max_ms > 500
    # On a machine that stands still the last ones are not answered before the drain's deadline.
    assert result.kinds[0].unexpected == 0


async def test_connections_that_are_closed_together_are_replaced_once_each() -> None:
    """Every other answer is a connection's last: an open loop has many to replace at once."""
    async with server(ANSWER, requests_max=2) as address:
        load = Load(address=address, kinds=[GET], connections=50, seconds=0.5, warmup_s=0, rate=600)
        result = await generate(load)
    (kind,) = result.kinds
    assert kind.unexpected == 0
    assert kind.answered > 100, "the replaced ones answer, too"


async def test_an_open_loop_keeps_the_shares_of_a_mix() -> None:
    async with server(ANSWER) as address:
        kinds = [
            get("often", [Text("/")], {"host": "h"}, weight=3),
            get("seldom", [Text("/")], {"host": "h"}, weight=1),
        ]
        load = Load(
            address=address, kinds=kinds, connections=16, seconds=2.0, warmup_s=0.1, rate=200
        )
        result = await generate(load)
    often, seldom = result.kinds
    assert result.rate == pytest.approx(200, rel=0.3)
    assert often.answered / seldom.answered == pytest.approx(3, rel=0.4)


async def test_an_address_where_nobody_listens_is_an_error() -> None:
    load = Load(address="127.0.0.1:1", kinds=[GET], connections=1, seconds=0.1)
    with pytest.raises(OSError):
        await generate(load)


async def test_the_generator_runs_as_a_process_of_its_own() -> None:
    async with server(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n") as address:
        kind = post("post", "/", [("host", [Text("h")]), ("key", [Unique()])], [])
        load = Load(address=address, kinds=[kind], connections=2, seconds=0.2, warmup_s=0.05)
        result = await asyncio.to_thread(run_load, load)
        assert result.failures == 0
        assert result.generator_us > 0
    with pytest.raises(Wrong, match="load generator failed"):
        await asyncio.to_thread(run_load, load)


async def test_a_load_that_is_stopped_ends_in_good_order() -> None:
    answered = threading.Event()

    def run_and_stop(load: Load) -> LoadResult:
        with RunningLoad(load) as running:
            assert answered.wait(60.0)
            running.stop()
            return running.result()

    async with server(ANSWER, answered=answered) as address:
        load = Load(address=address, kinds=[GET], connections=2, seconds=60.0, warmup_s=0)
        result = await asyncio.to_thread(run_and_stop, load)
    assert 0 < result.seconds < 60.0
    assert result.rate == pytest.approx(result.kinds[0].answered / result.seconds)
    assert result.failures == 0
