"""The books of the API benchmark: a ledger with accounts, and the requests against them.

Made through the public API, as a tenant would. Amounts and descriptions are of one length, so that
requests cost the generator next to nothing.
"""

import asyncio
import base64
import random
import uuid
from dataclasses import dataclass
from typing import Any, Final

import httpx

from benchmarks.errors import Wrong
from benchmarks.http_requests import Kind, OneOf, Part, Text, Unique, get, post
from benchmarks.platform_process import Platform, Tenant

ACCOUNTS: Final = 2_000
TRANSACTIONS: Final = 500
"""Transactions made beforehand, for reads."""
PAIRS: Final = 10_000
"""Different transactions that a run's writes go round through."""
SETUP_CONNECTIONS: Final = 16
ATTEMPTS_MAX: Final = 30
REQUEST_S_MAX: Final = 20.0
SEED: Final = 20_260_101


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What was created, and the credentials for it."""

    headers: dict[str, str]
    accounts: list[str]
    transactions: list[str]

    @property
    def hot(self) -> str:
        """The account that is in every transaction of a hot run."""
        return self.accounts[0]


def make_books(platform: Platform, tenant: Tenant | None = None) -> Books:
    """Create the ledger, its accounts and the first transactions, by default of the platform's
    own tenant."""
    tenant = tenant or platform.tenant
    return asyncio.run(create(platform.router, tenant.organization_id, tenant.api_key))


async def create(address: str, organization: str, api_key: str) -> Books:
    """At the host:port of a router or a cell."""
    credentials = base64.b64encode(f"{organization}:{api_key}".encode()).decode()
    headers = {"host": address, "authorization": f"Basic {credentials}"}
    limits = httpx.Limits(max_connections=SETUP_CONNECTIONS)
    async with httpx.AsyncClient(
        base_url=f"http://{address}", headers=headers, limits=limits, timeout=REQUEST_S_MAX
    ) as client:
        ledger = await create_object(client, "ledgers", {"name": "Benchmark"})
        accounts = await create_many(
            client,
            "ledger_accounts",
            [account_body(ledger, number) for number in range(ACCOUNTS)],
        )
        transactions = await create_many(
            client,
            "ledger_transactions",
            [
                {"status": "posted", "ledger_entries": entries(debited, credited)}
                for debited, credited in random_pairs(accounts, TRANSACTIONS)
            ],
        )
    return Books(headers=headers, accounts=accounts, transactions=transactions)


async def create_many(
    client: httpx.AsyncClient, resource: str, bodies: list[dict[str, Any]]
) -> list[str]:
    """The ids, in the bodies' order."""
    slots = asyncio.Semaphore(SETUP_CONNECTIONS)

    async def create_one(body: dict[str, Any]) -> str:
        async with slots:
            return await create_object(client, resource, body)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(create_one(body)) for body in bodies]
    return [task.result() for task in tasks]


async def create_object(client: httpx.AsyncClient, resource: str, body: dict[str, Any]) -> str:
    headers = {"idempotency-key": str(uuid.uuid4())}
    for _ in range(ATTEMPTS_MAX):
        answer = await client.post(f"/api/{resource}", json=body, headers=headers)
        if answer.status_code not in (429, 503):
            break
        await asyncio.sleep(1.0)
    if answer.status_code != 201:
        raise Wrong(f"POST {resource} was answered {answer.status_code}: {answer.text}")
    return str(answer.json()["id"])


def account_body(ledger: str, number: int) -> dict[str, Any]:
    return {
        "ledger_id": ledger,
        "name": f"Account {number}",
        "normal_balance": "credit" if number % 2 else "debit",
        "currency": "USD",
    }


def entries(debited: str, credited: str, amount: int = 1_250) -> list[dict[str, Any]]:
    return [
        {"ledger_account_id": debited, "direction": "debit", "amount": amount},
        {"ledger_account_id": credited, "direction": "credit", "amount": amount},
    ]


def random_pairs(accounts: list[str], count: int, hot: str | None = None) -> list[tuple[str, str]]:
    """Pairs of different accounts; with `hot`, it is in each of them, on either side."""
    draw = random.Random(SEED)
    if hot is None:
        samples = (draw.sample(accounts, 2) for _ in range(count))
        return [(debited, credited) for debited, credited in samples]
    others = [account for account in accounts if account != hot]
    pairs = ((hot, draw.choice(others)) for _ in range(count))
    return [pair if draw.random() < 0.5 else (pair[1], pair[0]) for pair in pairs]


def write_kind(books: Books, name: str, *, hot: bool, weight: float = 1.0) -> Kind:
    """Single-transaction POSTs: two entries, posted, an idempotency key each, no two runs alike."""
    fragments = [
        f'{{"ledger_account_id":"{debited}","direction":"debit","amount":{amount}}},'
        f'{{"ledger_account_id":"{credited}","direction":"credit","amount":{amount}}}'
        for amount, (debited, credited) in enumerate(
            random_pairs(books.accounts, PAIRS, books.hot if hot else None), start=10_000
        )
    ]
    sent: list[tuple[str, list[Part]]] = [(k, [Text(v)]) for k, v in books.headers.items()]
    key: list[Part] = [Text(f"{uuid.uuid4()}-"), Unique()]
    return post(
        name,
        "/api/ledger_transactions",
        [*sent, ("idempotency-key", key)],
        [
            Text('{"status":"posted","description":"Transfer between accounts","ledger_entries":['),
            OneOf(fragments),
            Text("]}"),
        ],
        weight,
    )


def read_hot_kind(books: Books, name: str) -> Kind:
    """GETs of the account that is in every transaction of a hot run."""
    return get(name, [Text(f"/api/ledger_accounts/{books.hot}")], books.headers)


def read_kind(books: Books, name: str, resource: str, weight: float = 1.0) -> Kind:
    """GETs of one account or one transaction after the other."""
    ids = list(books.accounts if resource == "ledger_accounts" else books.transactions)
    random.Random(SEED).shuffle(ids)
    return get(name, [Text(f"/api/{resource}/"), OneOf(ids)], books.headers, weight)
