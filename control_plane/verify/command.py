"""`cloister verify`: asks the control plane for a verification and shows what it found."""

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, TenantSlug, connect
from control_plane.verify.report import VerificationReport


def verify(tenant: TenantSlug, control_port: ControlPort = None, as_json: Json = False) -> None:
    """Recompute a tenant's ledger by a second path, and compare.

    Every balance from its entries, every row from the journal, the sums per currency, the hash
    chain, the idempotency keys: all on one snapshot of its cell's database, while traffic goes on.
    Exits with 1 and names the account on any difference.
    """
    progress = Console(stderr=True)
    with connect(control_port) as client:
        if progress.is_terminal:
            with progress.status(f"Verifying {tenant}"):
                report = client.verify(tenant)
        else:
            report = client.verify(tenant)
    cli_tables.show(report, as_json, print_report)
    if not report.ok:
        raise typer.Exit(1)


def print_report(console: Console, report: VerificationReport) -> None:
    state = "[green]verified[/]" if report.ok else "[red]DIFFERS[/]"
    console.print(
        f"{state}: tenant {report.tenant} on {report.cell} at sequence {report.last_seq:,}:"
        f" {report.accounts:,} accounts, {report.transactions:,} transactions,"
        f" {report.entries:,} entries, {report.segments:,} segments in {report.seconds:.1f} s"
    )
    if report.ok:
        return
    table = Table("check", "account", "what", "expected", "found", box=None)
    for difference in report.differences:
        table.add_row(
            difference.check,
            difference.ledger_account_id or "",
            # What tenants wrote is not ours to be read as markup.
            Text(difference.message),
            Text(difference.expected or ""),
            Text(difference.found or ""),
        )
    console.print(table)
