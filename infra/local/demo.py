"""The demo tenant: made at the first start, so that the first call of the API is one paste away.

Where it lives on a cell that does not run now, as another cells.yaml was named, there is another
one: demo-2, and so on.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import httpx
import msgspec

from control_plane.wire import CreatedKey, CreatedTenant, ErrorAnswer, ListedTenant
from infra.errors import StartFailed
from infra.local.layout import DataDirectory
from infra.local.private import write_private

SLUG: Final = "demo"
REACHABLE_S_MAX: Final = 20.0
"""From the tenant's making until the router must let it through."""
REFUSED_S_MAX: Final = 5.0
"""How long a stored key must be refused until it counts as revoked: routers learn with delay."""
POLL_S: Final = 0.05
REQUEST_S_MAX: Final = 10.0
ERROR_CHARACTERS_MAX: Final = 300

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMaker:
    """Brings the demo tenant about, through the control plane's API and the router."""

    data: DataDirectory
    client: httpx.AsyncClient
    control_url: str
    operator_token: str
    router_url: str
    cells: frozenset[str]
    """Those that run."""

    async def ensure(self) -> CreatedTenant:
        """The tenant and a key that works: the same as last time while that key is valid.

        Repeatable from any interrupted point. Raises StartFailed if it cannot be had.
        """
        slug = await self.choose_slug()
        known = self.read(slug)
        if known is not None and await self.wait_until_let_through(known, REFUSED_S_MAX):
            return known
        made = await self.make(slug)
        if not await self.wait_until_let_through(made, REACHABLE_S_MAX):
            raise StartFailed(f"{self.router_url} refuses the key that was made for {slug}")
        return made

    async def choose_slug(self) -> str:
        """The first one that is free, or of a tenant on a cell that runs."""
        slug, number = SLUG, 1
        while (cell := await self.cell_of(slug)) is not None and cell not in self.cells:
            number += 1
            slug = f"{SLUG}-{number}"
        return slug

    async def cell_of(self, slug: str) -> str | None:
        answer = await self.call("GET", f"/v1/tenants/{slug}")
        return None if answer.status_code == 404 else decode(answer, ListedTenant).cell

    def file(self, slug: str) -> Path:
        return self.data.secrets / f"{slug}.json"

    def read(self, slug: str) -> CreatedTenant | None:
        try:
            return msgspec.json.decode(self.file(slug).read_bytes(), type=CreatedTenant)
        except (OSError, msgspec.DecodeError):
            # Lost credentials are replaced by a new key.
            return None

    async def wait_until_let_through(self, demo: CreatedTenant, refused_s_max: float) -> bool:
        """Whether the API lets the tenant in; False once it has refused the key for so long.

        Raises StartFailed if it says neither yes nor no.
        """
        started = time.monotonic()
        while True:
            said = await self.ping(demo)
            if said == "200":
                return True
            waited_s = time.monotonic() - started
            if said == "401" and waited_s > refused_s_max:
                return False
            if waited_s > REACHABLE_S_MAX:
                raise StartFailed(
                    f"{self.router_url} does not serve the tenant {demo.tenant} within"
                    f" {REACHABLE_S_MAX:g} s; its last answer: {said}"
                )
            await asyncio.sleep(POLL_S)

    async def ping(self, demo: CreatedTenant) -> str:
        """The status of the answer, or what went wrong."""
        try:
            answer = await self.client.get(
                f"{self.router_url}/api/ping", auth=(str(demo.organization_id), demo.api_key)
            )
        except httpx.HTTPError as exc:
            return str(exc) or type(exc).__name__
        return str(answer.status_code)

    async def make(self, slug: str) -> CreatedTenant:
        """The tenant, or a new key for it where it exists already; kept in a private file."""
        created = await self.call("POST", "/v1/tenants", {"slug": slug})
        if created.status_code == 409:
            demo = await self.renew(slug)
        else:
            demo = decode(created, CreatedTenant)
        write_private(self.file(slug), msgspec.json.encode(demo).decode())
        return demo

    async def renew(self, slug: str) -> CreatedTenant:
        cell = await self.cell_of(slug)
        key = decode(await self.call("POST", f"/v1/tenants/{slug}/keys", {}), CreatedKey)
        return CreatedTenant(
            tenant=slug, organization_id=key.organization_id, api_key=key.api_key, cell=cell or ""
        )

    async def call(
        self, method: str, path: str, body: dict[str, str] | None = None
    ) -> httpx.Response:
        """The answer; 503 means that a cell is not there yet, and is asked again for a while."""
        deadline = time.monotonic() + REACHABLE_S_MAX
        while True:
            answer = await self.call_once(method, path, body)
            if answer.status_code != 503 or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(POLL_S)

    async def call_once(
        self, method: str, path: str, body: dict[str, str] | None
    ) -> httpx.Response:
        try:
            return await self.client.request(
                method,
                self.control_url + path,
                json=body,
                headers={"authorization": f"Bearer {self.operator_token}"},
                timeout=REQUEST_S_MAX,
            )
        except httpx.HTTPError as exc:
            reason = str(exc) or type(exc).__name__
            raise StartFailed(
                f"the control plane did not answer {method} {path}: {reason}"
            ) from exc


def decode(answer: httpx.Response, kind: type[AnswerT]) -> AnswerT:
    """The answer's body. Raises StartFailed for an error or another form; never shows a key."""
    asked = f"{answer.request.method} {answer.request.url.path}"
    if not answer.is_success:
        try:
            said = msgspec.json.decode(answer.content, type=ErrorAnswer).errors.message
        except msgspec.DecodeError:
            said = answer.text
        said = said[:ERROR_CHARACTERS_MAX]
        raise StartFailed(f"the control plane refused {asked} ({answer.status_code}): {said}")
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as exc:
        raise StartFailed(f"the control plane answered {asked} in another form: {exc}") from exc


def render_snippet(demo: CreatedTenant, router_url: str) -> str:
    """A program for the official SDK that runs as it stands: one balanced transaction."""
    return f'''\
from modern_treasury import ModernTreasury

client = ModernTreasury(
    organization_id="{demo.organization_id}",
    api_key="{demo.api_key}",
    base_url="{router_url}",
)
ledger = client.ledgers.create(name="Quickstart")
cash = client.ledger_accounts.create(
    ledger_id=ledger.id, name="Cash", currency="USD", normal_balance="debit"
)
wallet = client.ledger_accounts.create(
    ledger_id=ledger.id, name="Customer wallet", currency="USD", normal_balance="credit"
)
client.ledger_transactions.create(
    description="Deposit",
    status="posted",
    ledger_entries=[
        {{"ledger_account_id": cash.id, "direction": "debit", "amount": 1250}},
        {{"ledger_account_id": wallet.id, "direction": "credit", "amount": 1250}},
    ],
)
balance = client.ledger_accounts.retrieve(wallet.id).balances.posted_balance
print(f"{{balance.amount}} {{balance.currency}} (exponent {{balance.currency_exponent}})")
'''
