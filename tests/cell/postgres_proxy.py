"""A door between a sequencer and Postgres, for tests of what the network can do to a batch.

It listens on a socket file of its own and passes the real protocol on, message by message; a gate
sees each and can hold it back, let it through, or cut the connection before or after it. What was
passed on to the server is executed, whatever the client gets to hear.
"""

import asyncio
import contextlib
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Act(Enum):
    PASS = auto()
    CUT = auto()
    """Close both sides; the message is lost."""
    PASS_AND_CUT = auto()


@dataclass(frozen=True, slots=True)
class Message:
    from_server: bool
    kind: bytes
    body: bytes
    confirms: bool
    """Is it the server's word that a guarded batch is durable?"""

    @property
    def is_result(self) -> bool:
        """The result of a statement, which is not yet the word that it is durable."""
        return self.from_server and self.kind == b"C"


Gate = Callable[[Message], Awaitable[Act]]


async def let_through(message: Message) -> Act:
    return Act.PASS


class Once:
    """A gate that acts on the n-th message of those that are wanted, and lets all others pass."""

    def __init__(
        self, act: Act, is_wanted: Callable[[Message], bool] = lambda message: True, number: int = 0
    ) -> None:
        self.act = act
        self.is_wanted = is_wanted
        self.number = number
        self.seen = 0
        self.has_acted = False

    async def __call__(self, message: Message) -> Act:
        if self.has_acted or not self.is_wanted(message):
            return Act.PASS
        self.seen += 1
        self.has_acted = self.seen > self.number
        return self.act if self.has_acted else Act.PASS


class Held:
    """A gate that holds back confirmations until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0

    async def __call__(self, message: Message) -> Act:
        if message.confirms and not self.opened.is_set():
            self.waiting += 1
            await self.opened.wait()
        return Act.PASS


def fatal(sqlstate: str, words: str) -> bytes:
    """An error after which the server closes the connection."""
    fields = ("SFATAL", "VFATAL", f"C{sqlstate}", f"M{words}")
    body = b"".join(field.encode() + b"\0" for field in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


class Door:
    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        self.target = target
        self.gate: Gate = let_through
        self.last_words = b""
        """What the server seems to say before a cut."""
        self.messages: list[Message] = []
        """Everything since it was last emptied, start-up excluded."""
        self._connections: set[asyncio.Task[None]] = set()

    def dsn(self, dsn: str) -> str:
        """The same database, through this door."""
        return make_conninfo(dsn, host=str(self.directory))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        both = (writer, far_writer)
        passing = [
            asyncio.create_task(self._pass_on(reader, far_writer, False)),
            asyncio.create_task(self._pass_on(far_reader, writer, True)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # By `close` only; asyncio's streams take a cancelled connection for a failed one.
            pass
        finally:
            for each in passing:
                each.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            for each in both:
                each.close()
            for each in both:
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_server: bool
    ) -> None:
        """Return when one side has gone, or the gate wants them cut."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if not from_server:
                # The first message has no kind.
                writer.write(await self._length_and_body(reader, b""))
            is_guarded = False
            while True:
                kind = await reader.readexactly(1)
                raw = await self._length_and_body(reader, kind)
                # A batch begins with the guard's row description and is over, if nothing is
                # refused meanwhile, when the server is ready and idle.
                if from_server and kind in b"TE":
                    is_guarded = kind == b"T" and (is_guarded or b"guard_batch" in raw)
                confirms = is_guarded and raw == b"Z\0\0\0\5I"
                is_guarded = is_guarded and not confirms
                message = Message(from_server, kind, raw[5:], confirms)
                self.messages.append(message)
                act = await self.gate(message)
                if act is not Act.CUT:
                    writer.write(raw)
                    await writer.drain()
                if act is not Act.PASS:
                    if from_server:
                        writer.write(self.last_words)
                    return

    async def _length_and_body(self, reader: asyncio.StreamReader, kind: bytes) -> bytes:
        length = await reader.readexactly(4)
        return kind + length + await reader.readexactly(struct.unpack("!I", length)[0] - 4)

    async def close(self) -> None:
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@contextlib.asynccontextmanager
async def door_to(dsn: str) -> AsyncIterator[Door]:
    """A door to the server of the DSN, which it reaches by a socket file."""
    parameters = conninfo_to_dict(dsn)
    name = f".s.PGSQL.{parameters['port']}"
    with tempfile.TemporaryDirectory(prefix="door-") as directory:
        door = Door(Path(directory), Path(str(parameters["host"])) / name)
        server = await asyncio.start_unix_server(door._accept, Path(directory) / name)
        try:
            yield door
        finally:
            server.close()
            await door.close()
