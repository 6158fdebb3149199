"""What the CLI prints: one function for each kind of answer, and JSON of the same values."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control_plane.explanation import Explanation
from control_plane.routing import TenantLimits
from control_plane.wire import (
    CellReport,
    CreatedKey,
    CreatedTenant,
    ListedKey,
    ListedTenant,
    ReclaimedTenant,
    RevokedKey,
    StatusReport,
)

PIPED_COLUMNS = 200
"""Width where stdout is no terminal: nothing is cut off for the program that reads it."""

_ValueT = TypeVar("_ValueT")


def show(value: _ValueT, as_json: bool, print_value: Callable[[Console, _ValueT], None]) -> None:
    """Prints the value to stdout, for a program or for people."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    print_value(console, value)


def print_status(console: Console, status: StatusReport) -> None:
    state = "[green]healthy[/]" if status.healthy else "[red]not healthy[/]"
    console.print(
        f"{state}: cells {len(status.cells)}, tenants {status.tenants},"
        f" routing version {status.routing_version}"
    )
    table = new_table(
        "cell", "zone", "address", "open", "health", "tenants", "commands/s", "queue", "p99 batch"
    )
    for cell in status.cells:
        table.add_row(
            cell.name,
            cell.zone,
            cell.address,
            "yes" if cell.accepts_tenants else "no",
            _health(cell.healthy),
            str(cell.tenants),
            _number(cell.commands_per_second),
            _number(cell.queue_depth),
            _number(cell.batch_ms_p99, " ms"),
        )
    console.print(table)
    router = status.router
    lag = f", {router.routing_lag} versions behind" if router.routing_lag else ""
    console.print("router", router.address, _health(router.healthy), lag)
    for reason in _reasons(status):
        console.print(Text(reason))


def print_reclaimed(console: Console, reclaimed: Sequence[ReclaimedTenant]) -> None:
    if not reclaimed:
        console.print("No tenant is quarantined there.")
        return
    table = new_table("tenant", "sequence", "outcome")
    for each in reclaimed:
        if each.refused_because is not None:
            outcome = f"left as it is: {each.refused_because}"
        elif each.epoch is not None:
            outcome = f"served again by {each.placed_on}, at epoch {each.epoch}"
        else:
            outcome = f"served by {each.placed_on}; what was left of it elsewhere is deleted"
        table.add_row(each.tenant, str(each.last_seq), outcome)
    console.print(table)


def print_explanation(console: Console, explanation: Explanation) -> None:
    if explanation.tenant is not None:
        console.print(Text(f"tenant {explanation.tenant}"))
    for sentence in explanation.sentences:
        console.print(Text(sentence))
    if explanation.route is None or not explanation.route.requests:
        return
    table = new_table("request", "answered", "", "status", "cell", "epoch", "held", "resends")
    for each in explanation.route.requests:
        table.add_row(
            each.request_id,
            f"{datetime.fromtimestamp(each.answered_at).astimezone():%H:%M:%S}",
            Text(f"{each.method} {each.path}"),
            str(each.status),
            each.cell or "-",
            _number(each.epoch),
            _number(each.held_ms, " ms"),
            str(each.resends),
        )
    console.print(table)


def _reasons(status: StatusReport) -> list[str]:
    """Everything that is wrong, in a line each."""
    reasons = [line for cell in status.cells for line in _cell_reasons(cell)]
    if status.router.reason:
        reasons.append(f"router: {status.router.reason}")
    return reasons


def _cell_reasons(cell: CellReport) -> list[str]:
    reasons = []
    if cell.reason:
        reasons.append(f"{cell.name}: {cell.reason}")
    if not cell.reconciled:
        reasons.append(f"{cell.name}: {cell.reconcile_sentence}")
    if cell.last_error:
        reasons.append(f"{cell.name}: last error: {cell.last_error}")
    return reasons


def print_created_tenant(console: Console, created: CreatedTenant) -> None:
    console.print(f"Tenant {created.tenant} is on {created.cell}.")
    _print_credentials(console, str(created.organization_id), created.api_key)


def print_created_key(console: Console, created: CreatedKey) -> None:
    console.print(f"Key {created.key_id} of tenant {created.tenant}.")
    _print_credentials(console, str(created.organization_id), created.api_key)


def _print_credentials(console: Console, organization_id: str, api_key: str) -> None:
    console.print(f"organization id  {organization_id}", soft_wrap=True)
    console.print(f"API key          {api_key}", soft_wrap=True)
    console.print("The key is shown only now: keep it.")


def print_limits(console: Console, limits: TenantLimits) -> None:
    console.print(_limits(limits) or "as for any tenant")


def _limits(limits: TenantLimits) -> str:
    parts = (
        (limits.requests_per_s, "requests/s"),
        (limits.burst, "at once"),
        (limits.in_flight, "in flight"),
    )
    return ", ".join(f"{value:g} {what}" for value, what in parts if value is not None)


def print_tenants(console: Console, tenants: Sequence[ListedTenant]) -> None:
    table = new_table("tenant", "organization id", "cell", "epoch", "state", "created", "limits")
    for tenant in tenants:
        table.add_row(
            tenant.tenant,
            str(tenant.organization_id),
            tenant.cell,
            _number(tenant.epoch),
            tenant.state,
            f"{tenant.created_at:%Y-%m-%d %H:%M:%S}",
            _limits(tenant.limits),
        )
    console.print(table)


def print_keys(console: Console, keys: Sequence[ListedKey]) -> None:
    table = new_table("key id", "state", "created", "revoked")
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M:%S}" if key.revoked_at else ""
        table.add_row(str(key.key_id), key.state, f"{key.created_at:%Y-%m-%d %H:%M:%S}", revoked)
    console.print(table)


def print_revoked_key(console: Console, revoked: RevokedKey) -> None:
    console.print(f"Key {revoked.key_id} of tenant {revoked.tenant} is revoked.")


def new_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Ids and addresses are copied from here; a wrapped one could not be.
        table.add_column(column, no_wrap=True)
    return table


def duration(seconds: float) -> str:
    """An estimated one, in the unit that fits."""
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit_s:
            return f"about {seconds / unit_s:.0f} {unit}"
    return f"about {seconds:.0f} s"


def _health(healthy: bool) -> str:
    return "[green]healthy[/]" if healthy else "[red]not healthy[/]"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,g}{unit}"
