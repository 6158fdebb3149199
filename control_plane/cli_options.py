"""What the commands of `cloister` have in common: how they find the platform, and their options."""

import os
from typing import Annotated

import typer

from control_plane.client import OperatorClient

CONTROL_PORT = 8081
URL_VARIABLE = "CLOISTER_CONTROL_URL"

ControlPort = Annotated[
    int | None,
    typer.Option(
        "--control-port",
        metavar="N",
        min=1,
        max=65535,
        help=f"Port of the control plane on this machine; default {CONTROL_PORT},"
        f" or {URL_VARIABLE}.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TenantSlug = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's slug.")]


def control_url(control_port: int | None) -> str:
    """Where the control plane is: the option, else CLOISTER_CONTROL_URL, else port 8081 here."""
    given = os.environ.get(URL_VARIABLE, "").strip()
    if control_port is None and given:
        return given
    return f"http://127.0.0.1:{control_port or CONTROL_PORT}"


def connect(control_port: int | None) -> OperatorClient:
    """A client of the platform that the options name. Raises TokenUnavailable."""
    return OperatorClient(control_url(control_port))
