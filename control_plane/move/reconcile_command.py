"""`cloister reconcile`: asks the control plane to reconcile tenants, and shows what it found."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, connect
from control_plane.errors import NotFound
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
    The control plane does the same for each tenant once a day. Exits with 1 on any problem.
    """
    if (tenant is None) == (cell is None):
        raise typer.BadParameter("name a tenant, or a cell with --cell")
    with connect(control_port) as client:
        slugs = [tenant] if tenant is not None else []
        if cell is not None:
            names = sorted(each.name for each in client.status().cells)
            if cell not in names:
                raise NotFound(f"there is no cell {cell!r}: {', '.join(names)}")
            slugs = [each.tenant for each in client.tenants() if each.cell == cell]
        watched = track(
            slugs,
            description="reconciling",
            console=Console(stderr=True),
            disable=as_json or len(slugs) < 2,
        )
        found = [client.reconcile(slug) for slug in watched]
    cli_tables.show(found, as_json, print_reconciliations)
    if not all(each.ok for each in found):
        raise typer.Exit(1)


def print_reconciliations(console: Console, found: list[Reconciliation]) -> None:
    for each in found:
        state = "[green]agrees[/]" if each.ok else "[red]DIFFERS[/]"
        shadow = f", and its shadow on {each.shadow}" if each.shadow else ""
        console.print(f"{state}: {each.tenant} on {each.cell} at {each.last_seq:,}{shadow}")
        for problem in each.problems:
            console.print(f"  {problem}", soft_wrap=True, markup=False)
