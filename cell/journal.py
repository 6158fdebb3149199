"""The journal: per tenant, a dense sequence of records in hash-chained segments.

One segment holds what one batch applied for one tenant. Its body is compressed JSON and covers its
own place (tenant, epoch, sequences), so that no column beside it can be changed unnoticed;
`hash = sha256(previous hash ‖ body)` chains the segments, and Postgres can check it with its own
`sha256`. Written by the sequencer; read for idempotent replays, verification, and moves.
"""

from typing import Final

import msgspec

from cell.ledger.commands import Command
from cell.ledger.model import Row, TenantId

FORMAT: Final = 1
"""Layout of a body: zstd frame of the JSON of `SegmentBody`, rows as in `cell.ledger.model`."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """One applied command: all that is needed to execute, answer, or move it again."""

    seq: int
    at_us: int
    id_base: str
    api_key_id: str | None
    idempotency_key: str | None
    command: Command
    inserted: tuple[Row, ...]
    updated: tuple[Row, ...]


class SegmentBody(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    tenant_id: TenantId
    epoch: int
    first_seq: int
    last_seq: int
    records: tuple[Record, ...]
