"""The ledger that a load writes to: found or created, its accounts, and each row's transaction.

Nothing here is done twice, however often it is asked for: the ledger is found by its dataset, and
accounts and transactions have external ids and idempotency keys derived from the mapping.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from cell.ledger.model import Direction
from control_plane.load.api import (
    AccountAnswer,
    ApiClient,
    Json,
    LedgerAnswer,
    TransactionAnswer,
    decode,
    describe,
    error_detail,
)
from control_plane.load.errors import LoadRefused, RowRejected
from control_plane.load.mapping import Mapping
from control_plane.load.plan import PlannedAccount, PlannedTransaction

DATASET_KEY = "cloister_dataset"
"""Metadata key of the ledger; its value is the mapping's dataset."""

LEDGER_ATTEMPTS_MAX = 100
ACCOUNTS_KNOWN_MAX = 200_000
"""Ids kept in memory; others are asked for again when needed."""

ARCHIVED_KNOWN_MAX = 100_000
"""With more archived transactions than this, each row is looked up before it is posted."""


class Outcome(StrEnum):
    LOADED = "loaded"
    ALREADY_LOADED = "already loaded"


class _Known(NamedTuple):
    id: str
    normal_balance: Direction
    currency: str
    currency_exponent: int


class _Entry(NamedTuple):
    account: str
    direction: Direction
    amount: int


class Target:
    """One ledger of one tenant. `open_target` makes it."""

    def __init__(
        self, client: ApiClient, dataset: str, ledger_id: str, newest_before: datetime | None
    ) -> None:
        self.ledger_id = ledger_id
        self._client = client
        self._dataset = dataset
        self._newest_before = newest_before
        self._accounts: OrderedDict[str, _Known | asyncio.Event] = OrderedDict()
        self._archived: set[str] = set()
        """External ids that archived transactions had, up to ARCHIVED_KNOWN_MAX."""

    async def learn_accounts(self) -> None:
        """Read the ids of the accounts that are there, which is cheaper than one by one."""
        query: dict[str, str | int] = {"ledger_id": self.ledger_id}
        async for account in self._client.listed("/api/ledger_accounts", query, AccountAnswer):
            if account.external_id is not None:
                self._remember(account.external_id, _known(account))
            if len(self._accounts) >= ACCOUNTS_KNOWN_MAX:
                return

    async def learn_archived(self) -> None:
        """Read which transactions were archived: the platform would take their ids once more."""
        query: dict[str, str | int] = {"ledger_id": self.ledger_id, "status": "archived"}
        async for found in self._client.listed(
            "/api/ledger_transactions", query, _ListedTransaction
        ):
            if found.external_id is not None:
                self._archived.add(found.external_id)
            if len(self._archived) >= ARCHIVED_KNOWN_MAX:
                return

    async def holds_transactions(self, external_ids: Iterable[str]) -> bool:
        """Whether all of these are there, or were until they were archived."""
        for external_id in external_ids:
            if await self._transaction(external_id) is None:
                return False
        return True

    async def post(self, planned: PlannedTransaction) -> Outcome:
        """Create the transaction and the accounts it needs, unless it is there.

        Raises RowRejected if the platform refuses it, or holds another transaction or account of
        that external id.
        """
        entries = [
            _Entry(await self._account_id(entry.account), entry.direction, entry.amount)
            for entry in planned.entries
        ]
        if await self._was_archived(planned, entries):
            return Outcome.ALREADY_LOADED
        answer = await self._client.call(
            "POST",
            "/api/ledger_transactions",
            body=_transaction_body(planned, entries),
            idempotency_key=self._key("transaction", planned.external_id),
        )
        if answer.status in (200, 201):
            found = decode(answer, TransactionAnswer)
            _require_same(planned, entries, found)
            return self._outcome(found)
        if answer.status == 422 and error_detail(answer).parameter == "external_id":
            existing = await self._transaction(planned.external_id)
            if existing is not None:
                _require_same(planned, entries, existing)
                return self._outcome(existing)
        raise RowRejected(f"the platform answered {describe(answer)}")

    def _outcome(self, found: TransactionAnswer) -> Outcome:
        # The first answer to a key is given again. The tenant's times grow strictly, so what is not
        # younger than the youngest transaction before this run was not made by this run.
        if self._newest_before is not None and found.created_at <= self._newest_before:
            return Outcome.ALREADY_LOADED
        return Outcome.LOADED

    async def _was_archived(self, planned: PlannedTransaction, entries: list[_Entry]) -> bool:
        """Whether a person archived this very transaction; one that was mended since is another."""
        is_all_known = len(self._archived) < ARCHIVED_KNOWN_MAX
        if is_all_known and planned.external_id not in self._archived:
            return False
        found = await self._transaction(planned.external_id)
        if found is None or found.status != "archived":
            return False
        with suppress(RowRejected):
            _require_same(planned, entries, found)
            return True
        return False

    async def _transaction(self, external_id: str) -> "_ListedTransaction | None":
        answer = await self._client.call(
            "GET",
            "/api/ledger_transactions",
            query={"ledger_id": self.ledger_id, "external_id": external_id},
        )
        # An archived one gives its external id free, and may be listed beside its successor.
        listed = decode(answer, list[_ListedTransaction])
        return min(listed, key=lambda found: found.status == "archived", default=None)

    async def _account_id(self, planned: PlannedAccount) -> str:
        external_id = planned.external_id
        while isinstance(known := self._accounts.get(external_id), asyncio.Event):
            await known.wait()  # another row is creating it; if that fails, this one tries
        if known is None:
            created = asyncio.Event()
            self._accounts[external_id] = created
            try:
                known = await self._create_account(planned)
                self._remember(external_id, known)
            except BaseException:
                del self._accounts[external_id]
                raise
            finally:
                created.set()
        _require_same_account(planned, known)
        return known.id

    async def _create_account(self, planned: PlannedAccount) -> _Known:
        answer = await self._client.call(
            "POST",
            "/api/ledger_accounts",
            body=_account_body(planned, self.ledger_id),
            idempotency_key=self._key("account", planned.external_id),
        )
        if answer.status in (200, 201):
            return _known(decode(answer, AccountAnswer))
        if answer.status == 422 and error_detail(answer).parameter == "external_id":
            query: dict[str, str | int] = {
                "ledger_id": self.ledger_id,
                "external_id": planned.external_id,
            }
            async for found in self._client.listed("/api/ledger_accounts", query, AccountAnswer):
                return _known(found)
        raise RowRejected(
            f"account {planned.external_id!r}: the platform answered {describe(answer)}"
        )

    def _remember(self, external_id: str, known: _Known) -> None:
        self._accounts[external_id] = known
        while len(self._accounts) > ACCOUNTS_KNOWN_MAX:
            oldest = next(iter(self._accounts))
            if isinstance(self._accounts[oldest], asyncio.Event):
                return  # in the making; the next one to be remembered makes room
            del self._accounts[oldest]

    def _key(self, kind: str, external_id: str) -> str:
        return idempotency_key(self._dataset, self.ledger_id, kind, external_id)


class _ListedTransaction(TransactionAnswer, frozen=True):
    external_id: str | None
    status: str


async def open_target(client: ApiClient, mapping: Mapping) -> Target:
    """The ledger of the mapping's dataset, created if there is none.

    Raises LoadRefused if several ledgers claim the dataset, or the platform refuses the ledger.
    """
    listed = client.listed(
        "/api/ledgers", {f"metadata[{DATASET_KEY}]": mapping.dataset}, LedgerAnswer
    )
    found = [ledger.id async for ledger in listed]
    if len(found) > 1:
        raise LoadRefused(
            f"{len(found)} ledgers have the metadata {DATASET_KEY} = {mapping.dataset!r}: "
            f"{', '.join(found)}; keep it on one of them"
        )
    if not found:
        return Target(client, mapping.dataset, await _create_ledger(client, mapping), None)
    target = Target(client, mapping.dataset, found[0], await _newest(client, found[0]))
    await target.learn_accounts()
    await target.learn_archived()
    return target


async def _create_ledger(client: ApiClient, mapping: Mapping) -> str:
    body: Json = {
        "name": mapping.ledger.name,
        "description": mapping.ledger.description,
        "metadata": {**mapping.ledger.metadata, DATASET_KEY: mapping.dataset},
    }
    # The key makes two runs that start together agree on one ledger. It must not bring back the
    # answer of a ledger that was deleted since; then the next key is taken.
    for attempt in range(LEDGER_ATTEMPTS_MAX):
        answer = await client.call(
            "POST",
            "/api/ledgers",
            body=body,
            idempotency_key=idempotency_key(mapping.dataset, str(attempt), "ledger", ""),
        )
        if answer.status not in (200, 201):
            raise LoadRefused(f"the platform refuses the ledger: {describe(answer)}")
        ledger_id = decode(answer, LedgerAnswer).id
        if (await client.call("GET", f"/api/ledgers/{ledger_id}")).status == 200:
            return ledger_id
    raise LoadRefused(f"the ledger was deleted {LEDGER_ATTEMPTS_MAX} times within a day")


async def _newest(client: ApiClient, ledger_id: str) -> datetime | None:
    query: dict[str, str | int] = {"ledger_id": ledger_id, "per_page": 1}
    answer = await client.call("GET", "/api/ledger_transactions", query=query)
    newest = decode(answer, list[TransactionAnswer])
    return newest[0].created_at if newest else None


def idempotency_key(dataset: str, ledger_id: str, kind: str, external_id: str) -> str:
    """The name of one write of one dataset: the same in every run."""
    named = msgspec.json.encode((dataset, ledger_id, kind, external_id))
    return f"load-{kind}-{hashlib.sha256(named).hexdigest()}"


def _account_body(planned: PlannedAccount, ledger_id: str) -> Json:
    body: Json = {
        "ledger_id": ledger_id,
        "name": planned.name,
        "normal_balance": planned.normal_balance,
        "currency": planned.currency,
        "currency_exponent": planned.currency_exponent,
        "external_id": planned.external_id,
        "metadata": planned.metadata,
    }
    if planned.description is not None:
        body["description"] = planned.description
    return body


def _transaction_body(planned: PlannedTransaction, entries: Iterable[_Entry]) -> Json:
    body: Json = {
        "external_id": planned.external_id,
        "status": planned.status,
        "effective_at": planned.effective_at,
        "metadata": planned.metadata,
        "ledger_entries": [
            {
                "ledger_account_id": entry.account,
                "direction": entry.direction,
                "amount": entry.amount,
            }
            for entry in entries
        ],
    }
    if planned.description is not None:
        body["description"] = planned.description
    return body


def _known(account: AccountAnswer) -> _Known:
    money = account.balances.posted_balance
    return _Known(account.id, account.normal_balance, money.currency, money.currency_exponent)


def _require_same_account(planned: PlannedAccount, known: _Known) -> None:
    asked = (planned.normal_balance, planned.currency, planned.currency_exponent)
    if asked != known[1:]:
        raise RowRejected(
            f"conflict: account {planned.external_id!r} is {_shown(known[1:])} on the platform, "
            f"{_shown(asked)} in the mapping"
        )


def _shown(kind: tuple[Direction, str, int]) -> str:
    return f"{kind[0]}-normal in {kind[1]} with {kind[2]} decimals"


def _require_same(
    planned: PlannedTransaction, entries: Iterable[_Entry], found: TransactionAnswer
) -> None:
    # Description, metadata and status may have been changed on the platform since; what was moved,
    # where and when may not.
    there = sorted((e.ledger_account_id, e.direction, e.amount) for e in found.ledger_entries)
    if sorted(entries) != there:
        raise RowRejected(
            f"conflict: transaction {planned.external_id!r} is there with other entries: {there}"
        )
    if found.effective_at != planned.effective_at:
        raise RowRejected(
            f"conflict: transaction {planned.external_id!r} is there, effective at "
            f"{found.effective_at.isoformat()}, not {planned.effective_at.isoformat()}"
        )
