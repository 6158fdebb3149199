"""`cloister reconcile`: asks the control plane to reconcile tenants, and shows what it found."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, connect
from control_plane.client import OperatorClient
from control_plane.errors import NotFound, PlatformRefused
from control_plane.wire import Reconciliation


def reconcile(
    tenant: Annotated[
        str | None, typer.Argument(metavar="TENANT", help="The tenant's slug.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(metavar="CELL", help="Every tenant that is placed there.")
    ] = None,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Compare what the catalog, all cells and the journal say of tenants, while traffic goes on.

    That one cell owns the tenant and no other has rows of it; that its ledger is what its journal
    says; and while a move can be rolled back, that both cells hold the same rows at one sequence.
    The control plane does the same for each tenant once a day. With --cell, a tenant that cannot be
    looked at now, as one that is still being created, is listed with the reason. Exits with 1 on
    any problem, and where a tenant was not looked at.
    """
    if (tenant is None) == (cell is None):
        raise typer.BadParameter("name a tenant, or a cell with --cell")
    with connect(control_port) as client:
        found: list[Reconciliation] = []
        try:
            if tenant is not None:
                found.append(client.reconcile(tenant))
            elif cell is not None:
                for each in _reconcile_cell(client, cell, is_quiet=as_json):
                    found.append(each)
        finally:
            # A control plane that goes away in the middle takes nothing with it that was found.
            if found or cell is not None:
                cli_tables.show(found, as_json, print_reconciliations)
    if not all(each.ok for each in found):
        raise typer.Exit(1)


def _reconcile_cell(
    client: OperatorClient, cell: str, *, is_quiet: bool
) -> Iterator[Reconciliation]:
    names = sorted(each.name for each in client.status().cells)
    if cell not in names:
        raise NotFound(f"there is no cell {cell!r}: {', '.join(names)}")
    slugs = [each.tenant for each in client.tenants() if each.cell == cell]
    for slug in track(
        slugs,
        description="reconciling",
        console=Console(stderr=True),
        disable=is_quiet or len(slugs) < 2,
    ):
        try:
            yield client.reconcile(slug)
        except PlatformRefused as exc:
            # Of this tenant nothing is known now; that says nothing of the next one.
            yield Reconciliation(
                tenant=slug,
                cell=cell,
                ok=False,
                last_seq=None,
                shadow=None,
                problems=[f"not reconciled: {exc}"],
            )


def print_reconciliations(console: Console, found: list[Reconciliation]) -> None:
    for each in found:
        if each.last_seq is None:
            console.print(f"[yellow]NOT LOOKED AT[/]: {each.tenant} on {each.cell}")
        else:
            state = "[green]agrees[/]" if each.ok else "[red]DIFFERS[/]"
            shadow = f", and its shadow on {each.shadow}" if each.shadow else ""
            console.print(f"{state}: {each.tenant} on {each.cell} at {each.last_seq:,}{shadow}")
        for problem in each.problems:
            console.print(f"  {problem}", soft_wrap=True, markup=False)
