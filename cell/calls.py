"""A call: one authenticated request, as the endpoints of the resources see it.

An endpoint reads a call's query or typed body, has the sequencer apply a command or reads rows, and
returns an answer; errors are raised as `ApiError`. Knows no resource: those name their routes.
"""

import asyncio
import math
import re
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeVar

import msgspec

from cell import strict_json
from cell.answers import Answer
from cell.batch import Applied, Idempotency
from cell.durable_queue import DurableQueue
from cell.errors import InvalidRequest, NotFound, TooLarge, Unprocessable, UnsupportedMediaType
from cell.journal import Record
from cell.ledger.commands import Command
from cell.ledger.model import AccountBalances, LedgerAccount, TenantId
from cell.parameters import Parameter
from cell.projector import Projector
from cell.query import Query
from cell.reads import Reader
from cell.sequencer import Sequencer
from cell.settlement_worker import SettlementWorker
from cell.state import TransactionWithEntries
from cell.tenants import Directory, Principal
from cell.webhook_delivery import Deliverer
from cell.wellformed import as_uuid
from cell.wire import DEADLINE_HEADER

BODY_BYTES_MAX: Final = 25 * 1024 * 1024
BODY_S_MAX: Final = 30.0
"""A router has the whole body before it sends; whoever is slower is stuck."""

_IDEMPOTENCY_KEY: Final = re.compile(rb"[ -~]{1,255}")
_DEADLINE: Final = DEADLINE_HEADER.encode()
_JSON_TYPES: Final = frozenset({b"application/json", b"application/json;charset=utf-8"})

Receive = Callable[[], Awaitable[Any]]
Body = TypeVar("Body")
FirstAnswer = Callable[[Record], bytes | Answer]
"""Renders the first answer to an applied command, from its record alone: the body of a 201, or all
of it."""


class ClientGone(Exception):
    """The client closed the connection before its body was complete: nobody to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellParts:
    """What endpoints work with."""

    sequencer: Sequencer
    reader: Reader
    directory: Directory
    projector: Projector
    deliverer: Deliverer
    settlement_worker: SettlementWorker
    queue: DurableQueue
    first_answers: Mapping[type[Command], FirstAnswer]


class Call:
    """One request. Made by the API for each request, used by one endpoint."""

    __slots__ = (
        "_arrived_s",
        "_headers",
        "_query_string",
        "_receive",
        "ids",
        "parts",
        "principal",
        "tenant_id",
    )

    def __init__(
        self,
        parts: CellParts,
        principal: Principal,
        ids: Sequence[str],
        headers: dict[bytes, bytes],
        query_string: bytes,
        receive: Receive,
        arrived_s: float,
    ) -> None:
        """`arrived_s`: when its head came, by `time.perf_counter`."""
        self.parts = parts
        self.principal = principal
        self.tenant_id: TenantId = principal.tenant_id
        self.ids = ids
        """The variable segments of the path, decoded."""
        self._headers = headers
        self._query_string = query_string
        self._receive = receive
        self._arrived_s = arrived_s

    def query(self) -> Query:
        return Query(self._query_string)

    def require_id(self, what: str, place: int = 0) -> str:
        """The id at that place of the path; where none is, nothing can have it: NotFound."""
        id = as_uuid(self.ids[place])
        if id is None:
            raise NotFound(f"no {what} {self.ids[place]}")
        return id

    async def body(self, kind: type[Body]) -> Body:
        """The JSON body as a `kind`; raises what `strict_json.decode` and `read_body` raise."""
        return strict_json.decode(await self.raw_body(), kind)

    async def raw_body(self) -> bytes:
        """The bytes of the body, for who needs them as they came; only once a call."""
        return await read_body(self._headers, self._receive)

    def prefers_async(self) -> bool:
        """Does the client prefer an answer before its request is applied (RFC 7240)?"""
        preferences = self._headers.get(b"prefer", b"").lower().split(b",")
        return any(each.partition(b";")[0].strip() == b"respond-async" for each in preferences)

    async def create(self, command: Command) -> Answer:
        """Have a POST's command applied, once per idempotency key; answers 201, if not else said.

        A repeat of a key gives the first answer's bytes, whatever route or body it comes with.
        """
        outcome = await self.parts.sequencer.submit(
            self.tenant_id, command, self._idempotency(), self._wait_s()
        )
        if isinstance(outcome, Applied):
            record = outcome.record
        else:
            record = await self.parts.reader.record(self.tenant_id, outcome.seq)
        first = self.parts.first_answers[type(record.command)](record)
        return first if isinstance(first, Answer) else Answer(201, first)

    async def queue(self, command: Command, rows: int) -> Answer:
        """As `create`, for a command that puts so many rows into the durable queue."""
        with self.parts.queue.room(self.tenant_id, rows):
            answer = await self.create(command)
        self.parts.queue.wake(self.tenant_id)
        return answer

    async def apply(self, command: Command) -> Record:
        """Have a PATCH's or DELETE's command applied; these carry no idempotency key."""
        outcome = await self.parts.sequencer.submit(self.tenant_id, command, None, self._wait_s())
        assert isinstance(outcome, Applied), "only an idempotency key is replayed"
        return outcome.record

    def cached_live_account(self, id: str) -> tuple[LedgerAccount, AccountBalances] | None:
        """A live account of a live ledger, where memory holds both; else the database must say."""
        self.principal.require_readable()
        sequencer = self.parts.sequencer
        found = sequencer.memory.account(self.tenant_id, id)
        if found is None or found[0].discarded_at_us is not None:
            return None
        ledger = sequencer.memory.ledger(self.tenant_id, found[0].ledger_id)
        return found if ledger is not None and ledger.discarded_at_us is None else None

    def cached_transaction(self, id: str) -> TransactionWithEntries | None:
        """A transaction with its entries, where memory holds it; else the database must say."""
        self.principal.require_readable()
        return self.parts.sequencer.memory.transaction(self.tenant_id, id)

    async def fetch(
        self, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """Rows of this tenant; raises NotApplied where the cell does not hold its current state."""
        self.principal.require_readable()
        return await self.parts.reader.fetch(self.tenant_id, statement, parameters)

    async def fetch_by_match(
        self, statement: LiteralString, parameters: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        """As `fetch`, see `Reader.fetch_by_match`."""
        self.principal.require_readable()
        return await self.parts.reader.fetch_by_match(self.tenant_id, statement, parameters)

    def _wait_s(self) -> float:
        """For how long somebody still waits for the answer, by what the router said."""
        given = self._headers.get(_DEADLINE, b"")
        if not given.isdigit() or len(given) >= 10:
            return math.inf
        return int(given) / 1000 - (time.perf_counter() - self._arrived_s)

    def _idempotency(self) -> Idempotency | None:
        key = self._headers.get(b"idempotency-key")
        if key is None:
            return None
        if _IDEMPOTENCY_KEY.fullmatch(key) is None:
            raise Unprocessable(
                "an idempotency key has 1 to 255 printable ASCII characters",
                "Idempotency-Key",
                code="header_invalid",
            )
        return Idempotency(api_key_id=self.principal.api_key_id, key=key.decode("ascii"))


Endpoint = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path: who answers it, and how it is described.

    Not said are what all have in common: credentials, ids that are unknown, input that is
    malformed, a cell that cannot answer now.
    """

    method: str
    path: str
    """As in `/api/ledgers/{id}`: literal and variable segments alternate after `/api`."""
    endpoint: Endpoint
    summary: str = ""
    """A few words, as a title."""
    shows: Any = None
    """The view answered: a struct, `list[struct]` for a page of them, None for an empty body."""
    body: type[msgspec.Struct] | None = None
    """What `Call.body` is asked for; None where no body is read."""
    parameters: tuple[Parameter, ...] = ()
    """Of the query string: every one the endpoint reads."""
    errors: tuple[int, ...] = ()
    """Statuses beyond those which follow from the method, the path, the body and parameters."""
    deferred: Any = None
    """The view answered with 202 and a Location to poll, where the endpoint follows
    `Prefer: respond-async`; None where it does not read that header."""

    @property
    def success(self) -> int:
        return 201 if self.method == "POST" else 200


async def read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
    """The whole body of a request.

    Raises TooLarge above BODY_BYTES_MAX (before reading, where the length is announced),
    UnsupportedMediaType unless the body is uncompressed JSON, InvalidRequest when it does not come
    in time, ClientGone when the client goes away.
    """
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or int(announced) > BODY_BYTES_MAX:
        raise _too_large()
    receiving = _receive_all(receive)
    try:
        missing = receiving.send(None)
    except StopIteration as whole:
        # All of it is there, as a router sends it: a timer would cost more than the reading.
        body: bytes = whole.value
    else:
        try:
            async with asyncio.timeout(BODY_S_MAX):
                body = await _resumed(receiving, missing)
        except TimeoutError as exc:
            raise InvalidRequest(f"the body did not arrive within {BODY_S_MAX:g} s") from exc
    if body:
        _require_plain_json(headers)
    return body


@types.coroutine
def _resumed(begun: Coroutine[Any, Any, bytes], awaits: Any) -> Generator[Any, Any, bytes]:
    """Go on with a coroutine that was stepped once and awaits this."""
    yield awaits
    body: bytes = yield from begun
    return body


async def _receive_all(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise _too_large()
        if not message.get("more_body", False):
            return part if not parts else b"".join((*parts, part))
        parts.append(part)


def _too_large() -> TooLarge:
    return TooLarge(f"the body has more than {BODY_BYTES_MAX} bytes")


def _require_plain_json(headers: Mapping[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"")
    if kind not in _JSON_TYPES and kind.lower().replace(b" ", b"") not in _JSON_TYPES:
        raise UnsupportedMediaType("the body must be application/json in UTF-8", "Content-Type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("compressed bodies are not supported", "Content-Encoding")
