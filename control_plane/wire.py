"""The JSON of the control plane's HTTP API, as its server and its clients both read it.

The routing table has a module of its own (`routing.py`). Requests refuse unknown fields; answers
are read leniently, so that an older CLI understands a newer control plane.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec

from control_plane.routing import TenantLimits


class NewTenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/tenants"""

    slug: str
    cell: str | None = None
    """None: placement chooses."""


class CreatedTenant(msgspec.Struct, frozen=True):
    tenant: str
    organization_id: UUID
    api_key: str
    """Shown here and never again."""
    cell: str


class ListedTenant(msgspec.Struct, frozen=True):
    """Of GET /v1/tenants, and GET /v1/tenants/{slug}"""

    tenant: str
    organization_id: UUID
    cell: str
    """While provisioning, the cell where its creation began."""
    epoch: int | None
    """None while provisioning."""
    state: str
    created_at: datetime
    limits: TenantLimits = TenantLimits()


class NewLimits(TenantLimits, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """PUT /v1/tenants/{slug}/limits: all of them; what is not said is as for any tenant."""


class CreatedKey(msgspec.Struct, frozen=True):
    """POST /v1/tenants/{slug}/keys"""

    tenant: str
    organization_id: UUID
    key_id: UUID
    api_key: str
    """Shown here and never again."""


class ListedKey(msgspec.Struct, frozen=True):
    """Of GET /v1/tenants/{slug}/keys"""

    key_id: UUID
    state: str
    """active, revoked, or unconfirmed: the cell never said that it knows it."""
    created_at: datetime
    revoked_at: datetime | None


class RevokedKey(msgspec.Struct, frozen=True):
    """DELETE /v1/tenants/{slug}/keys/{key_id}"""

    tenant: str
    key_id: UUID
    state: str


WINDOW_S = 900
WINDOW_S_MAX = 7 * 86_400
MAX_PAUSE_MS = 150
MOVES_AT_ONCE_MAX = 4
"""On so many moves a control plane works at a time; more wait for their turn."""
CAN_BE_ROLLED_BACK = "can be rolled back"
"""The phase of a move whose source shadows its target."""
CONTRADICTION = "contradiction"
"""The phase of a move that needs a person: cells and catalog say what cannot be."""


PAUSING = "pause"
"""The phase of a move while the tenant's writes are paused, and just before, unless it waits."""
WAITS_FOR_SHORT_PAUSE = "wait for a short pause"
"""The phase of a move whose gate does not open."""


class NewMove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/moves"""

    tenant: str
    cell: str
    window_s: Annotated[int, msgspec.Meta(ge=0, le=WINDOW_S_MAX)] = WINDOW_S
    """For so long it can be rolled back."""
    max_pause_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = MAX_PAUSE_MS
    """Nothing is fenced while a longer pause of writes is to be expected."""


class MoveRehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/moves/rehearsals: what a move would be like; its pause is made of these times."""

    tenant: str
    source: str
    target: str
    rows: int
    """To be copied."""
    journal_bytes: int
    batch_ms_p99: float | None
    """Of the source's sequencer: the fence waits for a batch; null: not known."""
    read_ms: float
    commit_ms: float
    """Of the slower one of the two cells' databases."""
    catalog_ms: float
    expected_pause_ms: float
    max_pause_ms: int
    refused: str | None
    """Why the move would be refused, or wait; null: it would not."""


class MoveReport(msgspec.Struct, frozen=True, kw_only=True):
    """A move, as all routes of /v1/moves have it."""

    move_id: UUID
    tenant: str
    source: str
    target: str
    epoch_old: int
    epoch_new: int
    phase: str
    """What is being done: planned, prepare, copy, follow, compare, wait for a short pause, serve
    again, recompute, can be rolled back, clean up; commit, abort or rolled back at its end."""
    decision: str | None
    """commit or abort; null: it can still be aborted."""
    rows: int | None
    """Copied so far."""
    bytes: int | None
    copy_seconds: float | None
    rows_per_s: float | None = None
    """Copied, on the average of this attempt; the next line likewise."""
    bytes_per_s: float | None = None
    rows_left: int | None = None
    """To be copied still: about, by the statistics of the source's database."""
    eta_s: float | None = None
    """Until all rows are copied, at this rate; null: not being copied, or nothing to go by."""
    sequences_behind: int | None
    """How far the target's journal is behind the source's, as last seen."""
    pause_ms: float | None
    """From the fence to the moment when writes were taken again, as the mover saw it."""
    requests_held: int | None = None
    """In the pause, by the router; null: nothing is decided, the router has forgotten, was
    restarted or does not answer, or the move is one of a list."""
    expected_pause_ms: float | None
    """What was expected of it just before."""
    reason: str | None
    """Why it was aborted, or why it waits."""
    follows: UUID | None
    """The move that this one rolls back."""
    window_ends_at: datetime | None
    """Until then it can be rolled back; null: it is not decided so, or there is no window."""
    differences: list[str]
    """Rows that differed when they were compared last."""
    created_at: datetime
    decided_at: datetime | None
    finished_at: datetime | None


def is_finished(report: MoveReport) -> bool:
    return report.finished_at is not None


def is_done(report: MoveReport) -> bool:
    """The cell that is to keep the tenant serves it, though the move may still be rolled back."""
    return report.phase == CAN_BE_ROLLED_BACK or is_finished(report)


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/tenants/{slug}/reconcile"""

    tenant: str
    cell: str
    ok: bool
    last_seq: int | None
    """The tenant's sequence at which its ledger was recomputed; null: it was not looked at."""
    shadow: str | None
    """The cell that was compared too, where the last move can be rolled back."""
    problems: list[str]


class ReclaimedTenant(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/cells/{cell}/reclaim: one for each tenant that was quarantined there."""

    tenant: str
    last_seq: int
    """The last sequence that the restored database has of it."""
    placed_on: str | None = None
    """The cell that serves it; null where nothing was done."""
    epoch: int | None = None
    """At which that serves it again; null where it did all the time."""
    refused_because: str | None = None
    """Why nothing was done."""


class ReclaimWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What POST /v1/cells/{cell}/reclaim takes."""

    accepts_loss: bool = False
    """Also where another cell has more of a tenant than the one it is placed on."""


class CellReport(msgspec.Struct, frozen=True, kw_only=True):
    """A cell as `GET /v1/status` has it; numbers are null while it is not healthy."""

    name: str
    zone: str
    address: str
    accepts_tenants: bool
    healthy: bool
    reason: str | None
    """Why it is not healthy."""
    tenants: int
    """Placed there, by the catalog."""
    commands_per_second: float | None
    queue_depth: int | None
    batch_ms_p99: float | None
    schema_version: int | None
    writer_epoch: int | None
    last_error: str | None
    """The last error the cell reports of itself; it may be healthy again."""
    reconciled: bool
    """Whether schema, vacuum and indexes are as desired."""
    reconcile_sentence: str
    """What the last comparison did, or why it could not."""


class RouterReport(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    healthy: bool
    reason: str | None
    routing_version: int | None
    """Of the table it serves by; null if it does not say."""
    routing_lag: int | None
    """Versions it is behind the control plane."""


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/status"""

    healthy: bool
    """Whether every cell and the router are."""
    cells: list[CellReport]
    tenants: int
    routing_version: int
    router: RouterReport


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    code: str
    message: str
    parameter: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every answer that is not 2xx or 304."""

    errors: ErrorBody
