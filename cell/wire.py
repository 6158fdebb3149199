"""The protocol between a router and a cell; the cell owns it, the router speaks it.

A request carries the tenant's placement as the router knows it. An answer to a request that the
cell did not execute carries a verdict: a hard promise that nothing was queued or done. The tenant
header is a hint for logs only: the cell takes the tenant from the credentials it checks itself.
"""

from enum import StrEnum
from typing import Final

HEADER_PREFIX: Final = "cloister-"
"""Headers of ours; routers strip inbound copies before they forward a request."""

TENANT_HEADER: Final = "cloister-tenant"
EPOCH_HEADER: Final = "cloister-epoch"
"""Request: the epoch the router routed by. Verdict: the tenant's epoch as the cell knows it."""

REQUEST_ID_HEADER: Final = "cloister-request-id"
PUBLIC_REQUEST_ID_HEADER: Final = "x-request-id"
"""The request id as clients see it, on every answer."""

NOT_APPLIED_HEADER: Final = "cloister-not-applied"
MOVED_TO_HEADER: Final = "cloister-moved-to"
"""Name of the cell that owns the tenant now; only beside the verdict `moved`."""

DEADLINE_HEADER: Final = "cloister-deadline-ms"
"""Request: milliseconds after which nobody waits for its answer any more."""

KEEP_ALIVE_CELL_S: Final = 75
"""A cell closes an idle connection after this long; routers must let go of it earlier."""


class Verdict(StrEnum):
    """Why a cell did not execute a request."""

    FENCED = "fenced"
    """A cutover is under way; the request can be held and sent again at a higher epoch."""
    MOVED = "moved"
    """Another cell owns the tenant, at the epoch given."""
    NOT_OWNER = "not_owner"
    """This cell does not own the tenant (yet, or no longer), and does not know who does."""
    QUARANTINED = "quarantined"
    """The cell's database was restored from a backup, and nobody has said yet what is to become of
    the tenant. Nothing is waited for: that may take hours."""
    OVERLOADED = "overloaded"
    """A bounded queue is full; try again after the pause given in Retry-After."""


STATUS: Final[dict[Verdict, int]] = {
    Verdict.FENCED: 503,
    Verdict.MOVED: 421,
    Verdict.NOT_OWNER: 421,
    Verdict.QUARANTINED: 503,
    Verdict.OVERLOADED: 429,
}
"""HTTP status of each verdict."""
