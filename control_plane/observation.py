"""What is seen of a cell and of the router: values, and how rates come of two readings. Pure."""

from dataclasses import dataclass

from control_plane.cells import CellStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A counter at one moment."""

    commands_applied: int
    at_s: float
    """On the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellObservation:
    """A cell as it was last seen; numbers are None where nothing was ever learned."""

    healthy: bool
    reason: str | None
    """Why it is not healthy, in words."""
    tenants: int | None = None
    commands_per_second: float | None = None
    """Between the last two readings."""
    queue_depth: int | None = None
    """Commands waiting in the cell."""
    batch_ms_p99: float | None = None
    schema_version: int | None = None
    writer_epoch: int | None = None
    last_error: str | None = None


NEVER_OBSERVED = CellObservation(healthy=False, reason="not observed yet")


def unhealthy(reason: str) -> CellObservation:
    """Its numbers are gone with it: an old rate would read as a present one."""
    return CellObservation(healthy=False, reason=reason)


def observe_cell(
    status: CellStatus, reason: str | None, before: Reading | None, now: Reading
) -> CellObservation:
    """The observation made of the cell's answers and the reading before this one."""
    if reason is None and status.quarantined:
        reason = (
            f"its database was restored from a backup, {status.quarantined} tenants are not served:"
            f" see `cloister cells reclaim {status.cell}`"
        )
    return CellObservation(
        healthy=reason is None,
        reason=reason,
        tenants=status.tenants,
        commands_per_second=rate(before, now),
        queue_depth=status.queue_depth,
        batch_ms_p99=status.batch_ms_p99,
        schema_version=status.schema_version,
        writer_epoch=status.writer_epoch,
        last_error=status.last_error,
    )


def rate(before: Reading | None, now: Reading) -> float | None:
    """Commands per second between two readings; None if there is nothing to compare.

    A counter that went down began again with the cell's process: all it shows is new.
    """
    if before is None or now.at_s <= before.at_s:
        return None
    fresh = now.commands_applied < before.commands_applied
    applied = now.commands_applied - (0 if fresh else before.commands_applied)
    return round(applied / (now.at_s - before.at_s), 1)
