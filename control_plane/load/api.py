"""The public API as a load uses it: calls repeated until they have an answer that counts."""

import asyncio
import base64
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from cell.ledger.model import Direction
from control_plane.load.errors import LoadRefused, PlatformUnreachable
from control_plane.load.http_connection import Address, Answer, ConnectionLost, HttpConnection

GIVE_UP_S_MAX = 120.0
"""Default: how long one call is repeated."""

ATTEMPT_S_MAX = 30.0
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 5.0
PER_PAGE = 100

_REPEATED = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Nothing was done, or nobody knows; the idempotency key makes a repeat safe. 409: the same key is
still in flight."""

_T = TypeVar("_T")


class LedgerAnswer(msgspec.Struct, frozen=True):
    id: str


class MoneyAnswer(msgspec.Struct, frozen=True):
    currency: str
    currency_exponent: int


class BalancesAnswer(msgspec.Struct, frozen=True):
    posted_balance: MoneyAnswer


class AccountAnswer(msgspec.Struct, frozen=True):
    id: str
    external_id: str | None
    normal_balance: Direction
    balances: BalancesAnswer


class EntryAnswer(msgspec.Struct, frozen=True):
    ledger_account_id: str
    direction: Direction
    amount: int


class TransactionAnswer(msgspec.Struct, frozen=True):
    created_at: datetime
    effective_at: datetime
    ledger_entries: list[EntryAnswer]


class ErrorDetail(msgspec.Struct, frozen=True):
    code: str = "unknown"
    message: str = ""
    parameter: str | None = None


class _ErrorAnswer(msgspec.Struct, frozen=True):
    errors: ErrorDetail


class ApiClient:
    """Calls under one tenant's credentials; each concurrent caller gets a connection of its own."""

    def __init__(
        self, base_url: str, organization_id: str, api_key: str, give_up_s: float = GIVE_UP_S_MAX
    ) -> None:
        credentials = base64.b64encode(f"{organization_id}:{api_key}".encode()).decode()
        self._address = Address.parse(base_url)
        self._headers = {"authorization": f"Basic {credentials}", "user-agent": "cloister-load"}
        self._give_up_s = give_up_s
        self._idle: list[HttpConnection] = []

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | int] | None = None,
        body: object = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """The first answer that counts: a success, or a refusal that a repeat would not change.

        Raises PlatformUnreachable after the deadline, LoadRefused if the credentials are not taken.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        content = b"" if body is None else msgspec.json.encode(body)
        deadline = time.monotonic() + self._give_up_s
        connection = (
            self._idle.pop() if self._idle else HttpConnection(self._address, self._headers)
        )
        try:
            for attempt in range(1 << 20):
                left_s = deadline - time.monotonic()
                answer, reason = await _attempt(
                    connection, method, target, content, idempotency_key, left_s
                )
                if answer is not None and answer.status in (401, 403):
                    raise LoadRefused(f"the platform refuses the credentials: {describe(answer)}")
                if answer is not None and answer.status not in _REPEATED:
                    return answer
                pause_s = pause_before_repeat(answer, attempt, random.random())
                if time.monotonic() + pause_s >= deadline:
                    raise PlatformUnreachable(
                        f"{method} {path}: {reason}, for {self._give_up_s:.0f} s"
                    )
                await asyncio.sleep(pause_s)
            raise AssertionError("the deadline ends the loop")
        finally:
            self._idle.append(connection)

    async def listed(
        self, path: str, query: dict[str, str | int], item: type[_T]
    ) -> AsyncIterator[_T]:
        """Every item of a list, page by page."""
        cursor: str | None = None
        while True:
            page = {**query, "per_page": PER_PAGE, **({"after_cursor": cursor} if cursor else {})}
            answer = await self.call("GET", path, query=page)
            for found in decode(answer, list[item]):  # type: ignore[valid-type]  # a type parameter
                yield found
            cursor = answer.headers.get("x-after-cursor")
            if not cursor:
                return

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def _attempt(
    connection: HttpConnection,
    method: str,
    target: str,
    content: bytes,
    idempotency_key: str | None,
    left_s: float,
) -> tuple[Answer | None, str]:
    try:
        answer = await connection.request(
            method,
            target,
            body=content,
            idempotency_key=idempotency_key,
            timeout_s=max(0.1, min(left_s, ATTEMPT_S_MAX)),
        )
    except ConnectionLost as exc:
        return None, str(exc)
    return answer, describe(answer)


def pause_before_repeat(answer: Answer | None, attempt: int, chance: float) -> float:
    """Seconds: what the answer asks for, else growing with each attempt; spread by `chance`."""
    if answer is not None:
        for header, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            try:
                asked_s = float(answer.headers.get(header, "")) * unit_s
            except ValueError:  # absent, or an HTTP date, which nothing of ours sends
                continue
            if 0 <= asked_s < float("inf"):
                # All callers were told the same moment: they must not come back as one.
                return max(asked_s, PAUSE_S_MIN / 2) * (1 + chance / 4)
    return float(min(PAUSE_S_MAX, PAUSE_S_MIN * 2 ** min(attempt, 10))) * (0.75 + chance / 2)


def decode(answer: Answer, shape: type[_T]) -> _T:
    """A success's body. Raises LoadRefused for anything else: it is not the API we know."""
    if not 200 <= answer.status < 300:
        raise LoadRefused(f"the platform answered {describe(answer)}")
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise LoadRefused(f"the platform's answer is not the Ledgers API's: {exc}") from exc


def error_detail(answer: Answer) -> ErrorDetail:
    try:
        return msgspec.json.decode(answer.body, type=_ErrorAnswer).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ErrorDetail()


def describe(answer: Answer) -> str:
    """An answer in one line, for people."""
    detail = error_detail(answer)
    parameter = f" (parameter {detail.parameter})" if detail.parameter else ""
    return f"{answer.status} {detail.code}: {detail.message}{parameter}"


Json = dict[str, Any]
"""A request's body in the making."""
