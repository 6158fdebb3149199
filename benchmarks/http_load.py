"""A load generator for HTTP/1.1 that costs little processor time, in closed or open loop.

Closed loop: N connections, each sends its next request when the answer has come: the highest rate.
Open loop: requests leave on a schedule that does not wait for answers; latencies count from the
*intended* time, so a stalled server is charged for every request it kept waiting. The open loop
wakes every millisecond: up to one millisecond of each latency is the generator's.

Runs as `python -m benchmarks.http_load`, a `Load` in JSON on stdin, a `LoadResult` on stdout
(`run_load` does that). It shares its processor with nothing of its caller's, so that its own cost
per request, part of every result, is exact. Reads no body: statuses are counted, not contents.
"""

import asyncio
import contextlib
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Literal, Self, cast

import httptools
import msgspec
import uvloop

from benchmarks.errors import Wrong
from benchmarks.http_requests import Kind, generator
from benchmarks.percentiles import Latency, latency

DRAIN_S_MAX: Final = 10.0
"""How long answers are awaited after the last request was sent; later ones count as lost."""
CONNECT_S_MAX: Final = 5.0
RECONNECTS_MAX: Final = 1_000
"""A server that keeps closing connections ends the run instead of making it spin."""
TICK_S: Final = 0.001
LATE_S: Final = 0.005
"""A request that leaves later than this after its intended time counts as sent late."""
PATTERN_LENGTH: Final = 1_000
"""Length of the shuffled sequence of kinds which a mix repeats: shares are exact to 0.1 %."""
START_S_MAX: Final = 30.0
REFUSALS: Final = (429, 503)
"""Statuses that say that a limit was met, and nothing was done."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send where, how, and for how long."""

    address: str
    """host:port"""
    kinds: Sequence[Kind]
    connections: int
    """Closed loop: as many requests are always under way. Open loop: the bound; more wait."""
    seconds: float
    """Measured time, after the warm-up; what it was, if it is stopped before."""
    warmup_s: float = 1.0
    rate: float | None = None
    """Requests per second of the open loop; None means closed loop."""
    arrivals: Literal["poisson", "even"] = "poisson"
    seed: int = 1
    cpus: Sequence[int] | None = None
    """Processors the generator is pinned to; None leaves it to the scheduler."""


class KindResult(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    answered: int
    """Answers within the measured time."""
    rate: float
    """Answers per second."""
    latency: Latency
    """Of the expected answers."""
    refusal_latency: Latency
    """Of those that say that a limit was met."""
    unexpected: int
    """Answers with another status than the kind expects."""
    statuses: dict[str, int]
    lost: int
    """Requests without an answer: the connection closed, or the drain's deadline passed."""
    longest_gap_ms: float
    """Between two expected answers, wherever they came; 0 where there were not two."""


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float
    rate: float
    """Answers per second, all kinds."""
    offered: float | None
    """Requests per second that the schedule intended in the measured time; open loop only."""
    late: int
    """Requests sent more than LATE_S after their intended time; open loop only."""
    waiting_max: int
    """Most requests ever waiting for an idle connection; open loop only."""
    generator_us: float
    """The generator's own processor time per answer, in microseconds."""
    kinds: list[KindResult]

    @property
    def failures(self) -> int:
        return sum(kind.unexpected + kind.lost for kind in self.kinds)

    @property
    def refused(self) -> int:
        """Answers that say that a limit was met."""
        return sum(kind.statuses.get(str(each), 0) for kind in self.kinds for each in REFUSALS)


def run_load(load: Load) -> LoadResult:
    """Run the load in a process of its own; raises Wrong with its words if it fails."""
    with RunningLoad(load) as running:
        return running.result()


class RunningLoad:
    """A load in a process of its own, from the first request on; gone at the context's end."""

    def __init__(self, load: Load) -> None:
        self.deadline_s = START_S_MAX + load.warmup_s + load.seconds + DRAIN_S_MAX
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.http_load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        # Of one that has failed, the words say why.
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(msgspec.json.encode(load))
        self.process.stdin = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """End it before its time; it has to be running."""
        self.process.send_signal(signal.SIGTERM)

    def result(self) -> LoadResult:
        """Wait for its end. Raises Wrong with its words if it fails."""
        try:
            stdout, stderr = self.process.communicate(timeout=self.deadline_s)
        except subprocess.TimeoutExpired as exc:
            raise Wrong(f"the load generator took more than {self.deadline_s:g} s") from exc
        if self.process.returncode != 0:
            raise Wrong(f"the load generator failed: {stderr.decode()[-2000:]}")
        return msgspec.json.decode(stdout, type=LoadResult)


class Tally:
    """What happened to one kind's requests."""

    __slots__ = (
        "answered",
        "expected",
        "latencies",
        "longest_gap_s",
        "lost",
        "next_request",
        "refusal_latencies",
        "statuses",
        "succeeded_s",
    )

    def __init__(self, kind: Kind) -> None:
        self.next_request: Callable[[], bytes] = generator(kind)
        self.latencies = array("d")
        self.refusal_latencies = array("d")
        self.statuses: Counter[int] = Counter()
        self.answered = 0
        self.lost = 0
        self.expected = kind.expect
        self.succeeded_s: float | None = None
        self.longest_gap_s = 0.0

    def count(self, status: int, now_s: float) -> None:
        """An answer has come."""
        self.statuses[status] += 1
        if status != self.expected:
            return
        if self.succeeded_s is not None and now_s - self.succeeded_s > self.longest_gap_s:
            self.longest_gap_s = now_s - self.succeeded_s
        self.succeeded_s = now_s

    def time(self, status: int, took_s: float) -> None:
        """Of an answer within the measured time."""
        if status == self.expected:
            self.latencies.append(took_s)
        elif status in REFUSALS:
            self.refusal_latencies.append(took_s)


class Generator:
    """One run. `start_sending` and `answered` are what the two loops differ in."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.tallies = [Tally(kind) for kind in load.kinds]
        self.pattern = pattern_of(load, self.tallies)
        self.connections: set[Connection] = set()
        self.connecting: set[asyncio.Task[None]] = set()
        self.reconnects = 0
        self.begin = self.end = 0.0
        """Bounds of the measured time, by the performance counter."""
        self.stopped = False
        self.finished = asyncio.Event()
        """Sending is over: the time is up, or the run failed."""
        self.drained = asyncio.Event()
        self.failure: Exception | None = None
        self.cpu_s = 0.0
        self.late = 0
        self.waiting_max = 0

    async def run(self) -> LoadResult:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S_MAX + self.load.connections / 100):
            for _ in range(self.load.connections):
                await self.connect()
        self.begin = time.perf_counter() + self.load.warmup_s
        self.end = self.begin + self.load.seconds
        loop.call_later(self.load.warmup_s, self.note_cpu, -1)
        loop.call_later(self.load.warmup_s + self.load.seconds, self.stop)
        self.start_sending()
        await self.finished.wait()
        if self.failure is not None:
            raise self.failure
        await self.drain()
        return self.result()

    async def connect(self) -> "Connection":
        host, _, port = self.load.address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), host, int(port))
        self.connections.add(connection)
        return connection

    def note_cpu(self, sign: int) -> None:
        self.cpu_s += sign * time.process_time()

    def stop(self) -> None:
        if self.stopped:
            return
        self.end = min(self.end, time.perf_counter())
        if self.end <= self.begin:
            self.fail("stopped before the measured time began")
        self.note_cpu(1)
        self.stopped = True
        self.finished.set()
        self.settle()

    def fail(self, reason: str) -> None:
        self.failure = self.failure or Wrong(reason)
        self.finished.set()

    def settle(self) -> None:
        """After the last send: note when nothing is awaited any more."""
        if not self.unanswered():
            self.drained.set()

    async def drain(self) -> None:
        """Wait for the answers under way; those that do not come in time are lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S_MAX):
                await self.drained.wait()
        for connection in list(self.connections):
            if connection.tally is not None:
                connection.tally.lost += 1
                connection.tally = None
            connection.transport.abort()

    def unanswered(self) -> bool:
        return any(connection.tally is not None for connection in self.connections)

    def start_sending(self) -> None:
        raise NotImplementedError

    def answered(self, connection: "Connection", tally: Tally, status: int) -> None:
        raise NotImplementedError

    def available(self, connection: "Connection") -> None:
        """A connection was replaced and can send."""
        raise NotImplementedError

    def disconnected(self, connection: "Connection") -> None:
        """Count what was under way as lost, and open another connection in its place."""
        self.connections.discard(connection)
        if connection.tally is not None:
            connection.tally.lost += 1
            connection.tally = None
        if self.stopped:
            self.settle()
            return
        self.reconnects += 1
        if self.reconnects > RECONNECTS_MAX:
            self.fail(f"{self.load.address} closed {RECONNECTS_MAX} connections")
            return
        task = asyncio.get_running_loop().create_task(self.reconnect(), name="reconnect")
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def reconnect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                connection = await self.connect()
        except (OSError, TimeoutError) as exc:
            self.fail(f"cannot connect to {self.load.address} again: {exc}")
            return
        self.available(connection)

    def result(self) -> LoadResult:
        seconds = self.end - self.begin
        answered = sum(tally.answered for tally in self.tallies)
        return LoadResult(
            seconds=seconds,
            rate=answered / seconds,
            offered=self.offered(),
            late=self.late,
            waiting_max=self.waiting_max,
            generator_us=self.cpu_s / max(answered, 1) * 1e6,
            kinds=[
                kind_result(kind, tally, seconds)
                for kind, tally in zip(self.load.kinds, self.tallies, strict=True)
            ],
        )

    def offered(self) -> float | None:
        return None


class ClosedLoop(Generator):
    """Each connection sends its next request when the answer has come."""

    def start_sending(self) -> None:
        for connection in list(self.connections):
            self.available(connection)

    def available(self, connection: "Connection") -> None:
        connection.send(next(self.pattern), time.perf_counter())

    def answered(self, connection: "Connection", tally: Tally, status: int) -> None:
        now = time.perf_counter()
        tally.count(status, now)
        if self.begin <= now < self.end:
            tally.answered += 1
            tally.time(status, now - connection.intended)
        if self.stopped:
            self.settle()
        else:
            connection.send(next(self.pattern), now)


class OpenLoop(Generator):
    """Requests leave on a schedule; without an idle connection they wait, their clock running."""

    def __init__(self, load: Load, rate: float) -> None:
        super().__init__(load)
        self.gaps = gaps(load, rate)
        self.next_at = 0.0
        self.scheduled = 0
        self.idle: deque[Connection] = deque()
        """All take turns, so that a server finds none idle for long."""
        self.waiting: deque[tuple[Tally, float]] = deque()

    def start_sending(self) -> None:
        self.idle.extend(self.connections)
        self.next_at = time.perf_counter() + next(self.gaps)
        self.tick()

    def tick(self) -> None:
        if self.stopped or self.failure is not None:
            return
        asyncio.get_running_loop().call_later(TICK_S, self.tick)
        now = time.perf_counter()
        while self.next_at <= now:
            intended = self.next_at
            self.next_at += next(self.gaps)
            self.scheduled += self.begin <= intended < self.end
            tally = next(self.pattern)
            if self.idle:
                self.late += now - intended > LATE_S
                self.idle.popleft().send(tally, intended)
            else:
                self.waiting.append((tally, intended))
        self.waiting_max = max(self.waiting_max, len(self.waiting))

    def available(self, connection: "Connection") -> None:
        if not self.waiting:
            self.idle.append(connection)
            return
        tally, intended = self.waiting.popleft()
        self.late += time.perf_counter() - intended > LATE_S
        connection.send(tally, intended)

    def answered(self, connection: "Connection", tally: Tally, status: int) -> None:
        now = time.perf_counter()
        tally.count(status, now)
        tally.answered += self.begin <= now < self.end
        if self.begin <= connection.intended < self.end:
            tally.time(status, now - connection.intended)
        self.available(connection)
        if self.stopped:
            self.settle()

    def disconnected(self, connection: "Connection") -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        super().disconnected(connection)

    def unanswered(self) -> bool:
        return bool(self.waiting) or super().unanswered()

    async def drain(self) -> None:
        await super().drain()
        for tally, _ in self.waiting:
            tally.lost += 1

    def offered(self) -> float | None:
        return self.scheduled / (self.end - self.begin)


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request under way."""

    __slots__ = ("intended", "owner", "parser", "tally", "transport")

    def __init__(self, owner: Generator) -> None:
        self.owner = owner
        self.tally: Tally | None = None
        self.intended = 0.0
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def send(self, tally: Tally, intended: float) -> None:
        self.tally = tally
        self.intended = intended
        self.transport.write(tally.next_request())

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self.owner.fail(f"broken answer from {self.owner.load.address}: {exc}")

    def on_message_complete(self) -> None:
        tally = self.tally
        if tally is None:
            self.owner.fail("an answer came that nothing had asked for")
            return
        self.tally = None
        if self.parser.should_keep_alive():
            self.owner.answered(self, tally, self.parser.get_status_code())
        else:
            self.owner.fail("the server ends connections; this generator keeps them")

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner.disconnected(self)


def pattern_of(load: Load, tallies: Sequence[Tally]) -> Iterator[Tally]:
    """The endless sequence of kinds: shuffled once, exact in its shares, cheap to follow."""
    total = sum(kind.weight for kind in load.kinds)
    counts = [max(1, round(kind.weight / total * PATTERN_LENGTH)) for kind in load.kinds]
    sequence = [tally for tally, count in zip(tallies, counts, strict=True) for _ in range(count)]
    random.Random(load.seed).shuffle(sequence)
    return itertools.cycle(sequence)


def gaps(load: Load, rate: float) -> Iterator[float]:
    """The endless sequence of times between intended sends, in seconds."""
    if load.arrivals == "even":
        return itertools.repeat(1 / rate)
    draw = random.Random(load.seed).expovariate
    return (draw(rate) for _ in itertools.count())


def kind_result(kind: Kind, tally: Tally, seconds: float) -> KindResult:
    total = sum(tally.statuses.values())
    return KindResult(
        name=kind.name,
        answered=tally.answered,
        rate=tally.answered / seconds,
        latency=latency(tally.latencies),
        refusal_latency=latency(tally.refusal_latencies),
        unexpected=total - tally.statuses[kind.expect],
        statuses={str(status): count for status, count in sorted(tally.statuses.items())},
        lost=tally.lost,
        longest_gap_ms=round(tally.longest_gap_s * 1e3, 3),
    )


async def generate(load: Load) -> LoadResult:
    """Run the load in this process and event loop."""
    return await generator_of(load).run()


def generator_of(load: Load) -> Generator:
    return ClosedLoop(load) if load.rate is None else OpenLoop(load, load.rate)


async def generate_until_told(load: Load) -> LoadResult:
    run = generator_of(load)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, run.stop)
    return await run.run()


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    if load.cpus is not None:
        os.sched_setaffinity(0, load.cpus)
    # Nothing here makes cycles worth collecting; a collection would be charged to the server.
    gc.disable()
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(generate_until_told(load))))


if __name__ == "__main__":
    main()
