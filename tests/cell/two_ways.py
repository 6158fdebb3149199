"""One cell as its routers reach it, and the same cell through a router: what must not differ.

A way is a tenant of its own that is always reached in the same manner. Both have the same books and
are asked the same things in the same order, so that every answer must be the same but for ids and
times. Used by the table of bad inputs.
"""

import base64
import contextlib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
from cell_process import Access, CellProcess
from router_cells import serving
from router_clients import Client
from router_running import ControlPlane, RunningRouter, await_endings, running_router, wait_until
from router_running import table as routing_table

UNKNOWN = "0190a000-0000-7000-8000-00000000dead"
JSON = {"content-type": b"application/json"}
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
POSITION = "SELECT last_seq FROM tenant_heads WHERE tenant_id = %s"
TIME = re.compile(r"\d{4}-\d\d-\d\d(?:T[\d:.]+Z)?")
OF_ONE_ANSWER = ("x-request-id", "date", "content-length", "x-after-cursor", "connection")
"""Headers that differ between two answers that say the same."""


@dataclass(frozen=True)
class Way:
    """One tenant's books behind one address."""

    access: Access
    http: httpx.Client
    database: psycopg.Connection[Any] | None = None
    """The cell's, as the superuser."""
    ids: dict[str, str] = field(default_factory=dict)
    """What stands for `@name` in a request."""

    def filled(self, text: str | bytes) -> bytes:
        content = text.encode() if isinstance(text, str) else text
        if b"@" not in content:
            return content
        for name, id in self.ids.items():
            content = content.replace(f"@{name}".encode(), id.encode())
        return content

    def ask(
        self, method: str, path: str, body: str | bytes | None = None, **headers: str
    ) -> httpx.Response:
        """A request as it stands in the table, `content_type=` and the like as its headers."""
        given = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
        content = None if body is None else self.filled(body)
        return self.http.request(
            method,
            self.filled(path).decode(),
            content=content,
            headers={**({} if content is None else JSON), **given},
        )

    def made(self, path: str, body: dict[str, Any]) -> str:
        """The id of what is created."""
        answer = self.ask("POST", path, json.dumps(body))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def position(self) -> int:
        """The tenant's last sequence: it grows with whatever is written, a key by itself too."""
        assert self.database is not None
        ((seq,),) = self.database.execute(POSITION, (self.access.organization_id,)).fetchall()
        return int(seq)

    def posted(self, name: str) -> int:
        """The posted balance of an account."""
        answer = self.ask("GET", f"/api/ledger_accounts/@{name}")
        return int(answer.json()["balances"]["posted_balance"]["amount"])

    @functools.cached_property
    def authorization(self) -> bytes:
        pair = f"{self.access.organization_id}:{self.access.api_key}"
        return b"Basic " + base64.b64encode(pair.encode())

    def raw(self) -> Client:
        """A connection for exact bytes."""
        port = urlsplit(self.access.base_url).port
        assert port is not None
        return Client(port)


class Routing:
    """Routers before one cell, and the control plane that tells them where tenants live."""

    def __init__(
        self, cell: CellProcess, directory: Path, control: ControlPlane, control_port: int
    ) -> None:
        self._control = control
        self._control_port = control_port
        self._cell = cell
        self._directory = directory
        self._epochs: dict[str, int] = {}
        self._version = 0

    def place(self, access: Access, epoch: int = 1) -> None:
        """Publish a tenant's placement."""
        self._epochs[access.organization_id] = epoch
        self._version += 1
        tenants = {tenant: ("cell-test", of) for tenant, of in self._epochs.items()}
        self._control.table = routing_table(self._version, tenants, {"cell-test": self._cell.port})

    @contextlib.contextmanager
    def router(self, **settings: Any) -> Iterator[RunningRouter]:
        directory = self._directory / f"router-{len(list(self._directory.glob('router-*')))}"
        directory.mkdir()
        with running_router(directory, self._control_port, **settings) as router:
            yield router

    def through(self, router: RunningRouter, access: Access) -> Access:
        """The tenant as it is reached through a router, once the router knows it."""
        routes = router.router.routes
        wait_until(lambda: routes.is_fresh and routes.version == self._version, "the table")
        return replace(access, base_url=f"http://127.0.0.1:{router.port}")


@dataclass(frozen=True)
class Ways:
    cell: CellProcess
    database: Any
    routing: Routing
    router: RunningRouter
    direct: Way
    routed: Way

    @property
    def both(self) -> tuple[Way, Way]:
        return self.direct, self.routed

    @contextlib.contextmanager
    def of_new_tenant(self) -> Iterator[tuple[Way, Way]]:
        """One tenant, with books of its own, both ways."""
        access = self.cell.new_tenant()
        self.routing.place(access)
        routed = self.routing.through(self.router, access)
        with access.http() as first, routed.http() as second:
            direct = Way(access, first, self.direct.database)
            direct.ids.update(open_books(direct))
            yield direct, Way(routed, second, direct.database, direct.ids)

    def answered(self) -> int:
        """Requests the router counts as answered by the cell."""
        return sum(self.router.router.routes.pools[0].answers)


@contextlib.contextmanager
def two_ways(cell: CellProcess, directory: Path, database: Any) -> Iterator[Ways]:
    """With the same books both ways, see `open_books`, and ids of a third tenant's."""
    with contextlib.ExitStack() as parts:
        dsn = database.superuser_dsn
        connection = parts.enter_context(psycopg.connect(dsn, autocommit=True))
        control = ControlPlane()
        server = parts.enter_context(serving(control.app))
        routing = Routing(cell, directory, control, server.port)
        accesses = [cell.new_tenant() for _ in range(3)]
        for access in accesses:
            routing.place(access)
        router = parts.enter_context(routing.router())
        accesses[1] = routing.through(router, accesses[1])
        direct, routed, other = (
            Way(access, parts.enter_context(access.http()), connection) for access in accesses
        )
        theirs = {f"their-{name}": id for name, id in open_books(other).items()}
        for way in (direct, routed):
            way.ids.update(open_books(way), unknown=UNKNOWN, **theirs)
        yield Ways(cell, database, routing, router, direct, routed)
    await_endings()


def open_books(way: Way) -> dict[str, str]:
    """A ledger with accounts, and one of each that requests of the table name."""
    ledger = way.made("/api/ledgers", {"name": "n"})
    ids = {"ledger": ledger, "other-ledger": way.made("/api/ledgers", {"name": "other"})}
    for name, normal, currency in (
        ("cash", "debit", "USD"),
        ("alice", "credit", "USD"),
        ("euro", "credit", "EUR"),
        ("closed", "credit", "USD"),
    ):
        account = {"ledger_id": ledger, "name": name, "normal_balance": normal}
        ids[name] = way.made("/api/ledger_accounts", account | {"currency": currency})
    category = {"ledger_id": ledger, "name": "dollars", "normal_balance": "credit"}
    ids["category"] = way.made("/api/ledger_account_categories", category | {"currency": "USD"})
    entries = [
        {"ledger_account_id": ids[name], "direction": direction, "amount": 100}
        for name, direction in (("cash", "debit"), ("alice", "credit"))
    ]
    for name, status in (("held", "pending"), ("posted", "posted"), ("archived", "archived")):
        ids[name] = way.made(
            "/api/ledger_transactions", {"ledger_entries": entries, "status": status}
        )
    closed = way.http.delete(f"/api/ledger_accounts/{ids['closed']}")
    assert closed.status_code == 200, closed.text
    return ids


def without_ids(text: str) -> str:
    return TIME.sub("TIME", ID.sub("ID", text))


def essence(answer: httpx.Response) -> tuple[Any, ...]:
    """All of an answer that must be the same both ways."""
    headers = {
        name: value for name, value in answer.headers.items() if name not in OF_ONE_ANSWER
    } | {"has cursor": "x-after-cursor" in answer.headers}
    return answer.status_code, headers, without_ids(answer.text)
