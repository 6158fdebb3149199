"""The `cloister` command's part that talks to a running platform: status, explain, tenants, keys,
load, verify, move, evacuate, reconcile, demo.

`infra/cli.py` adds `up` and `down` to `app`. Every command finds the platform by --control-port or
CLOISTER_CONTROL_URL, and its token by `access.py`. Results go to stdout, errors to stderr in one
line. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from math import isfinite
from typing import Annotated, Any
from uuid import UUID

import typer
from typer.core import TyperGroup

from control_plane import cli_tables
from control_plane.cli_options import ControlPort, Json, TenantSlug, connect
from control_plane.errors import ControlPlaneError
from control_plane.load.command import load
from control_plane.move.command import move, moves
from control_plane.move.demo import demo
from control_plane.move.evacuate import evacuate
from control_plane.move.reconcile_command import reconcile
from control_plane.routing import TenantLimits
from control_plane.verify.command import verify


class ReportingGroup(TyperGroup):
    """Turns our errors into one line on stderr and exit code 1, for every command below it."""

    def invoke(self, ctx: Any) -> Any:  # Any: the type of a context is private to typer
        try:
            return super().invoke(ctx)
        except ControlPlaneError as exc:
            typer.echo(f"error: {exc}", err=True)
            raise typer.Exit(1) from exc


app = typer.Typer(
    name="cloister",
    help="Run a cell-based ledger platform, and look after its tenants.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=ReportingGroup,
)
tenants = typer.Typer(help="Create and list tenants.", no_args_is_help=True)
keys = typer.Typer(help="Create, list and revoke the API keys of a tenant.", no_args_is_help=True)
cells = typer.Typer(help="Look after cells.", no_args_is_help=True)
app.add_typer(tenants, name="tenants")
app.add_typer(cells, name="cells")
app.add_typer(keys, name="keys")


@app.command(epilog="Example: cloister status --json")
def status(control_port: ControlPort = None, as_json: Json = False) -> None:
    """Show the cells, their tenants and rates, and what is unhealthy and why.

    Exits with 0 when the platform answers, healthy or not.
    """
    with connect(control_port) as client:
        report = client.status()
    cli_tables.show(report, as_json, cli_tables.print_status)


@app.command(
    epilog="Example: cloister explain 5d1c0a2b9e4f-1a2b; the id is in the answer's x-request-id."
)
def explain(
    request_id: Annotated[
        str | None,
        typer.Argument(metavar="[REQUEST_ID]", help="The x-request-id of an answer."),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(metavar="TENANT", help="Where the tenant's next request would go."),
    ] = None,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Say why a request went where it went: cell, epoch, table, holds, moves, resends.

    The router remembers the last ten thousand requests, and forgets them when it ends.
    """
    if (request_id is None) is (tenant is None):
        raise typer.BadParameter("name a REQUEST_ID, or a tenant with --tenant")
    with connect(control_port) as client:
        if tenant is not None:
            explanation = client.explain_tenant(tenant)
        else:
            assert request_id is not None, "one of the two was given"
            explanation = client.explain_request(request_id)
    cli_tables.show(explanation, as_json, cli_tables.print_explanation)


@cells.command("reclaim", epilog="Example: cloister cells reclaim cell-a")
def reclaim(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="The cell that was restored.")],
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Also where another cell has more of a tenant than the one it is placed on.",
        ),
    ] = False,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Say what becomes of tenants whose cell was restored from a backup.

    Such a cell has quarantined them. Those placed there are served again from what the backup
    has, once their ledgers are proved right: what was written after it is lost. Of those that
    are served elsewhere by now the old rows are deleted. Moves of them that are open are closed.
    Safe to repeat; exits with 1 while anything is left to be done.
    """
    with connect(control_port) as client:
        reclaimed = client.reclaim(cell, accepts_loss=accept_loss)
    cli_tables.show(reclaimed, as_json, cli_tables.print_reclaimed)
    if any(each.refused_because is not None for each in reclaimed):
        raise typer.Exit(1)


@tenants.command("create", epilog="Example: cloister tenants create acme --cell cell-a")
def create_tenant(
    slug: Annotated[
        str,
        typer.Argument(
            metavar="SLUG", help="2 to 63 lower-case letters, digits and -; begins with a letter."
        ),
    ],
    cell: Annotated[
        str | None, typer.Option(metavar="CELL", help="Its cell; default: the least loaded one.")
    ] = None,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Create a tenant with its first API key, which is shown only now.

    A creation that was interrupted is completed by the same command again.
    """
    with connect(control_port) as client:
        created = client.create_tenant(slug, cell)
    cli_tables.show(created, as_json, cli_tables.print_created_tenant)


@tenants.command("list", epilog="Example: cloister tenants list --json")
def list_tenants(control_port: ControlPort = None, as_json: Json = False) -> None:
    """List every tenant with its cell."""
    with connect(control_port) as client:
        found = client.tenants()
    cli_tables.show(found, as_json, cli_tables.print_tenants)


@tenants.command("limit", epilog="Example: cloister tenants limit acme --requests-per-second 500")
def limit_tenant(
    tenant: TenantSlug,
    requests_per_second: Annotated[
        float | None, typer.Option(metavar="N", min=0.001, help="Beyond it: 429.")
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="At once after a quiet time; default: those of a second."
        ),
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests under way; beyond it: 429.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="As for any tenant again.")] = False,
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Limit what a tenant may ask of each router; at once, and all limits together.

    What is not said is as for any tenant. With several routers each keeps the limits for itself.
    """
    limits = TenantLimits(requests_per_s=requests_per_second, burst=burst, in_flight=in_flight)
    if requests_per_second is not None and not isfinite(requests_per_second):
        raise typer.BadParameter("--requests-per-second takes a number of requests")
    if none == (limits != TenantLimits()):
        raise typer.BadParameter("name a limit, or --none")
    with connect(control_port) as client:
        found = client.limit_tenant(tenant, limits)
    cli_tables.show(found, as_json, cli_tables.print_limits)


@keys.command("create", epilog="Example: cloister keys create acme")
def create_key(tenant: TenantSlug, control_port: ControlPort = None, as_json: Json = False) -> None:
    """Create a further API key, which is shown only now. The others stay valid."""
    with connect(control_port) as client:
        created = client.create_key(tenant)
    cli_tables.show(created, as_json, cli_tables.print_created_key)


@keys.command("list", epilog="Example: cloister keys list acme")
def list_keys(tenant: TenantSlug, control_port: ControlPort = None, as_json: Json = False) -> None:
    """List the API keys of a tenant; never their secrets."""
    with connect(control_port) as client:
        found = client.keys(tenant)
    cli_tables.show(found, as_json, cli_tables.print_keys)


@keys.command(
    "revoke", epilog="Example: cloister keys revoke acme 3f0c9a52-7a1e-4d0e-9a57-0d3c2b1a4f6e"
)
def revoke_key(
    tenant: TenantSlug,
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    control_port: ControlPort = None,
    as_json: Json = False,
) -> None:
    """Revoke an API key: requests with it are refused from now on. Safe to repeat."""
    with connect(control_port) as client:
        revoked = client.revoke_key(tenant, key_id)
    cli_tables.show(revoked, as_json, cli_tables.print_revoked_key)


app.command(
    epilog="Example: cloister load --tenant demo --mapping examples/berka.yaml trans.asc.gz"
)(load)
app.command(epilog="Example: cloister verify demo --json")(verify)
app.command(epilog="Example: cloister move acme cell-b")(move)
app.add_typer(moves, name="moves")
app.command(epilog="Example: cloister reconcile --cell cell-a --json")(reconcile)
app.add_typer(demo, name="demo")
app.command(epilog="Example: cloister evacuate cell-a --to cell-b")(evacuate)
