"""`cloister demo move`: two tenants under steady traffic, one of them moved back and forth.

It shows to whoever doubts it what a move costs the tenant that is moved, and its neighbour:
requests sent and failed, the longest gap between two acknowledged writes, the pause; and at the end
a verification of both ledgers.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx
import msgspec
import typer
from rich.console import Console

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, connect
from control_plane.client import OperatorClient
from control_plane.errors import ControlPlaneError
from control_plane.verify.report import VerificationReport
from control_plane.wire import MoveReport, is_done, is_finished

CONNECTIONS = 8
"""Of each tenant; one write at a time on each."""
WARM_UP_S = 2.0
BETWEEN_MOVES_S = 2.0
REQUEST_S_MAX = 30.0
ATTEMPTS_MAX = 5
CREATED = 201

demo = typer.Typer(help="Show what the platform does.", no_args_is_help=True)


class TenantDemo(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant's client saw."""

    tenant: str
    cells: list[str]
    """Where it lived, one after another."""
    sent: int
    failed: int
    """Answered with anything but 201, or not at all."""
    failures: dict[str, int]
    longest_gap_ms: float
    """Between two acknowledged writes."""
    p50_ms: float
    p99_ms: float
    verified: bool
    """Whether its ledger was recomputed without a difference: all trial balances are zero."""
    transactions: int


class MoveDemo(msgspec.Struct, frozen=True, kw_only=True):
    tenants: list[TenantDemo]
    moves: list[MoveReport]


class DemoFailed(ControlPlaneError):
    """The demo did not show what it should."""

    code = "demo_failed"


@dataclass(kw_only=True)
class Traffic:
    """Steady writes of one tenant, through the router."""

    slug: str
    http: httpx.AsyncClient
    interval_s: float
    """Between two writes of a connection."""
    accounts: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    acknowledged_at_s: float | None = None
    longest_gap_s: float = 0.0

    async def open_books(self) -> None:
        """A ledger with two accounts. Raises DemoFailed."""
        ledger = await self._create("/api/ledgers", {"name": "Demo of a move"})
        for name in ("one", "other"):
            account = {
                "name": name,
                "ledger_id": ledger,
                "normal_balance": "credit",
                "currency": "EUR",
            }
            self.accounts.append(await self._create("/api/ledger_accounts", account))

    async def _create(self, path: str, body: dict[str, Any]) -> str:
        answer = await self.http.post(path, json=body, headers={"idempotency-key": str(uuid4())})
        if answer.status_code != CREATED:
            raise DemoFailed(f"{self.slug}: {path} answered {answer.status_code}: {answer.text}")
        return str(answer.json()["id"])

    async def run(self, is_over: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                delay_s = self.interval_s * number / CONNECTIONS
                group.create_task(self._write_steadily(is_over, delay_s))

    async def _write_steadily(self, is_over: asyncio.Event, delay_s: float) -> None:
        next_s = time.monotonic() + delay_s
        for amount in itertools.count(1):
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if is_over.is_set():
                return
            next_s = max(next_s + self.interval_s, time.monotonic())
            await self._write(amount)

    async def _write(self, amount: int) -> None:
        """One transaction. It is not sent again: what fails is to be seen."""
        entries = [
            {"ledger_account_id": account, "direction": direction, "amount": amount}
            for account, direction in zip(self.accounts, ("debit", "credit"), strict=True)
        ]
        body = {"status": "posted", "ledger_entries": entries}
        began_s = time.monotonic()
        try:
            answer = await self.http.post(
                "/api/ledger_transactions", json=body, headers={"idempotency-key": str(uuid4())}
            )
            outcome = str(answer.status_code)
        except httpx.TransportError as exc:
            outcome = type(exc).__name__
        now_s = time.monotonic()
        self.latencies_s.append(now_s - began_s)
        if outcome != str(CREATED):
            self.failures[outcome] += 1
            return
        if self.acknowledged_at_s is not None:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.acknowledged_at_s)
        self.acknowledged_at_s = now_s

    def seen(self, cells: list[str], report: VerificationReport) -> TenantDemo:
        ordered = sorted(self.latencies_s)
        return TenantDemo(
            tenant=self.slug,
            cells=cells,
            sent=len(ordered),
            failed=self.failures.total(),
            failures=dict(self.failures),
            longest_gap_ms=round(self.longest_gap_s * 1000, 1),
            p50_ms=round(ordered[len(ordered) // 2] * 1000, 1),
            p99_ms=round(ordered[len(ordered) * 99 // 100] * 1000, 1),
            verified=report.ok,
            transactions=report.transactions,
        )


@demo.command("move", epilog="Example: cloister demo move --moves 4 --rate 200")
def demo_move(
    moves: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="How often the one tenant moves.")
    ] = 2,
    rate: Annotated[
        float, typer.Option(metavar="N", min=1, help="Writes per second of each of the tenants.")
    ] = 100.0,
    max_pause_ms: Annotated[
        int, typer.Option(metavar="MS", min=1, max=60_000, help="As of `cloister move`.")
    ] = 150,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Move a tenant back and forth under steady traffic, and show what its client saw.

    Makes two tenants of its own, demo-moves and demo-stays, on the same cell, and uses them again
    the next time. Exits with 1 if a request failed, a move was aborted or a ledger is not right.
    """
    with connect(control_port) as client:
        plan = _Plan(client=client, moves=moves, rate=rate, max_pause_ms=max_pause_ms)
        result = asyncio.run(plan.run())
    cli_tables.show(result, as_json, print_demo)
    if any(each.failed or not each.verified for each in result.tenants):
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    client: OperatorClient
    moves: int
    rate: float
    max_pause_ms: int

    async def run(self) -> MoveDemo:
        keys: list[tuple[str, UUID]] = []
        stays = self._traffic("demo-stays", None, keys)
        moves = self._traffic("demo-moves", stays[1], keys)
        is_over = asyncio.Event()
        try:
            for traffic, _ in (stays, moves):
                await traffic.open_books()
            running = [asyncio.create_task(each.run(is_over)) for each, _ in (stays, moves)]
            try:
                await asyncio.sleep(WARM_UP_S)
                reports = await asyncio.to_thread(self._move_about, moves[1])
            finally:
                is_over.set()
                await asyncio.gather(*running)
        finally:
            for traffic, _ in (stays, moves):
                await traffic.http.aclose()
            for slug, key_id in keys:
                self.client.revoke_key(slug, key_id)
        cells = [moves[1], *(report.target for report in reports)]
        return MoveDemo(
            tenants=[
                moves[0].seen(cells, self.client.verify("demo-moves")),
                stays[0].seen([stays[1]], self.client.verify("demo-stays")),
            ],
            moves=reports,
        )

    def _traffic(
        self, slug: str, cell: str | None, keys: list[tuple[str, UUID]]
    ) -> tuple[Traffic, str]:
        """Traffic of the tenant, which is made where there is none, and its cell; a key that was
        made for it is added to `keys`."""
        found = next((each for each in self.client.tenants() if each.tenant == slug), None)
        if found is None:
            created = self.client.create_tenant(slug, cell)
            organization_id, key, place = created.organization_id, created.api_key, created.cell
        else:
            made = self.client.create_key(slug)
            keys.append((slug, made.key_id))
            key = made.api_key
            organization_id, place = found.organization_id, found.cell
        http = httpx.AsyncClient(
            base_url=f"http://{self.client.status().router.address}",
            auth=(str(organization_id), key),
            trust_env=False,
            timeout=REQUEST_S_MAX,
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        return Traffic(slug=slug, http=http, interval_s=CONNECTIONS / self.rate), place

    def _move_about(self, home: str) -> list[MoveReport]:
        others = [
            cell.name for cell in self.client.status().cells if cell.name != home and cell.healthy
        ]
        if not others:
            raise DemoFailed("there is no other healthy cell to move to")
        reports = []
        for turn in range(self.moves):
            target = others[0] if turn % 2 == 0 else home
            reports.append(self._move_to(target))
            time.sleep(BETWEEN_MOVES_S)
        # So that the demo can be shown again at once.
        self.client.finish_move(reports[-1].move_id)
        return reports

    def _move_to(self, target: str) -> MoveReport:
        """A machine that stands still can make a pause too long: then the move is tried again."""
        for _ in range(ATTEMPTS_MAX):
            report = self.client.create_move("demo-moves", target, max_pause_ms=self.max_pause_ms)
            for last in self.client.watch_move(report.move_id, is_done):
                report = last
            if report.decision == "commit":
                return report
            for last in self.client.watch_move(report.move_id, is_finished):
                report = last
        raise DemoFailed(f"move {report.move_id} was aborted: {report.reason}")


def print_demo(console: Console, result: MoveDemo) -> None:
    table = cli_tables.new_table(
        "tenant", "cells", "sent", "failed", "longest gap", "p50", "p99", "trial balance"
    )
    for each in result.tenants:
        table.add_row(
            each.tenant,
            " -> ".join(each.cells),
            f"{each.sent:,}",
            str(each.failed),
            f"{each.longest_gap_ms:.0f} ms",
            f"{each.p50_ms:.1f} ms",
            f"{each.p99_ms:.1f} ms",
            "zero" if each.verified else "WRONG",
        )
    console.print(table)
    console.print(_pauses(result.moves))


def _pauses(moves: Sequence[MoveReport]) -> str:
    """The pauses of writes in one line."""
    pauses = ["?" if each.pause_ms is None else f"{each.pause_ms:.0f}" for each in moves]
    return f"{len(moves)} moves, writes paused for {', '.join(pauses)} ms"
