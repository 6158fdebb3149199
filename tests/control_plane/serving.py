"""A control plane as a process, over two databases of cells with real tenants in them, and the
commands of `cloister` against it. What cells and routers would do is not needed for a move."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
from cell_writing import execute, own_tenant, rows, transfer, write
from typer.testing import CliRunner, Result

from cell.ledger.model import TenantId
from control_plane.cli import app
from control_plane.move.heads import HeadState

CELLS = ("cell-a", "cell-b")


class Served:
    """The process, its catalog and the two databases."""

    def __init__(self, process: Any, pair: tuple[Any, Any], directory: Path) -> None:
        self.process = process
        self.databases: dict[str, Any] = dict(zip(CELLS, pair, strict=True))
        self.catalog_dsn: str = process.environment["CLOISTER_CONTROL_CATALOG_DSN"]
        self.fail_points = directory / "fail-points"
        self.fail_points.mkdir()
        process.environment["CLOISTER_CONTROL_FAIL_POINTS"] = str(self.fail_points)
        cells = Path(process.environment["CLOISTER_CONTROL_CELLS_FILE"])
        configured = msgspec.json.decode(cells.read_bytes())
        for endpoint in configured["cells"]:
            for role in ("owner", "auditor", "mover"):
                dsn = getattr(self.databases[endpoint["name"]], f"{role}_dsn")
                endpoint[f"{role}_dsn"] = dsn
        cells.write_bytes(msgspec.json.encode(configured))
        # Neither cell has an index that the other lacks: that would forbid every move.
        Path(configured["topology_file"]).write_text("cells: {cell-a: {}, cell-b: {}}\n")

    def start(self) -> None:
        self.process.start_ready()
        self.process.wait_until(lambda: self.parsed("status")["healthy"])

    def create(self, *slugs: str, cell: str = "cell-a") -> dict[str, TenantId]:
        """Tenants that live on the cell, each with a few transactions."""
        dsn = self.databases[cell].writer_dsn
        tenants = {slug: own_tenant(dsn) for slug in slugs}
        asyncio.run(_write_some(dsn, tenants.values()))
        for slug, tenant_id in tenants.items():
            execute(
                self.catalog_dsn,
                "INSERT INTO tenants (organization_id, slug, state, first_cell, attempt)"
                " VALUES (%s, %s, 'active', %s, %s)",
                *(tenant_id, slug, cell, uuid4()),
            )
            execute(
                self.catalog_dsn,
                "INSERT INTO placements (organization_id, cell, epoch) VALUES (%s, %s, 1)",
                *(tenant_id, cell),
            )
        return tenants

    def create_unplaced(self, slug: str, cell: str = "cell-a") -> None:
        """One whose creation has begun and was not completed."""
        execute(
            self.catalog_dsn,
            "INSERT INTO tenants (organization_id, slug, state, first_cell, attempt)"
            " VALUES (%s, %s, 'provisioning', %s, %s)",
            *(uuid4(), slug, cell, uuid4()),
        )

    def run(self, *arguments: str, expected: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == expected, result.output
        return result

    def parsed(self, *arguments: str, expected: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", expected=expected).stdout)

    def lines(self, *arguments: str, expected: int = 0) -> list[dict[str, Any]]:
        """Of a command that says one thing after another."""
        done = self.run(*arguments, "--json", expected=expected)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def cell_of(self, slug: str) -> str:
        return next(t["cell"] for t in self.parsed("tenants", "list") if t["tenant"] == slug)

    def damage(self, cell: str, tenant_id: TenantId) -> str:
        """The balance of one ledger account is wrong from here on; its id."""
        (row,) = rows(
            self.databases[cell].superuser_dsn,
            "UPDATE ledger_account_balances SET posted_debits = posted_debits + 1 WHERE"
            " ledger_account_id = (SELECT ledger_account_id FROM ledger_account_balances"
            " WHERE tenant_id = %s LIMIT 1) RETURNING ledger_account_id::text",
            tenant_id,
        )
        return str(row[0])

    @contextmanager
    def unfenced(self, cell: str, tenant_id: TenantId) -> Iterator[Callable[[], None]]:
        """A batch that does not end keeps the tenant's head from being fenced, until it is told
        to let go."""
        with psycopg.connect(self.databases[cell].superuser_dsn) as connection:
            mine = "SELECT FROM tenant_heads WHERE tenant_id = %s FOR NO KEY UPDATE"
            connection.execute(mine, (tenant_id,))
            yield connection.rollback

    def state(self, cell: str, tenant_id: TenantId) -> HeadState:
        with psycopg.connect(self.databases[cell].superuser_dsn) as connection:
            query = "SELECT state::text FROM tenant_heads WHERE tenant_id = %s"
            row = connection.execute(query, (tenant_id,)).fetchone()
        assert row is not None
        return HeadState(row[0])


async def _write_some(dsn: str, tenants: Iterable[TenantId]) -> None:
    async with write(dsn) as writer:
        for tenant_id in tenants:
            debited, credited = await writer.accounts(tenant_id, 2)
            for number in range(3):
                await writer.apply(tenant_id, transfer(debited, credited), key=f"k{number}")
