"""The desired cells as frozen values: what cells.yaml says, with defaults filled in.

`topology.py` reads the file into these. A line under each field says its unit, default and
consequence; the ranges are in the reader.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cell.tables import TENANT_TABLES
from control_plane.index_expression import Token, canonical_expression
from control_plane.routing import CellName

TABLES = (*TENANT_TABLES, "tenant_heads")
"""The tables of a cell that `vacuum` and `indexes` may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSpec:
    """Sizing of the cell's Postgres. A change takes effect when that Postgres is started again."""

    shared_buffers: str = "128MB"
    """Memory for pages shared by all connections, with its unit (kB, MB, GB, TB)."""
    max_connections: int = 40
    """Connections it accepts; at least `pool.max_size` + 12, each costing some 10 MB when busy."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Further lines of postgresql.conf. Those the platform owns are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Connections of the cell for reads. The sequencer has its own beside them."""

    min_size: int = 2
    """Connections kept open; the first requests after a quiet time find them ready."""
    max_size: int = 8
    """Connections at most; further reads wait for one, then are refused."""
    pgbouncer: str | None = None
    """`host:port` of a PgBouncer in transaction mode for these connections; none: straight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerSpec:
    """The cell's single writer."""

    batch_size: int = 1000
    """Commands in one database transaction at most. More costs latency, less throughput."""
    linger_ms: int = 0
    """How long a batch waits for company, in milliseconds; 0: it takes what is there."""
    queue_commands_max: int = 8192
    """Commands waiting in the cell; above it requests are shed with 503 before anything is done."""
    queue_commands_per_tenant_max: int = 4096
    """Commands of one tenant waiting; above it that tenant gets 429."""
    cache_accounts: int = 50_000
    """Ledger accounts whose balances are kept in memory, about 1 kB each; bounds the memory."""
    async_batch_size: int = 500
    """Rows of the durable queue (bulk requests, `Prefer: respond-async`) in flight at most."""
    async_linger_ms: int = 50
    """How long such a row waits for company at most, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VacuumSpec:
    """Autovacuum settings of one table; those left out stay as the schema has them."""

    table: str
    options: Mapping[str, str]
    """Storage parameter to value, as `pg_class.reloptions` shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A custom index, built without blocking writes and dropped when it leaves the file."""

    name: str
    """In Postgres it is `custom_` + this + `_` + a digest of the definition."""
    table: str
    using: str = "btree"
    """Access method."""
    expression: tuple[Token, ...]
    """What stands between the parentheses of CREATE INDEX."""
    tenant: str | None = None
    """Slug of the tenant whose rows alone are indexed; none: all rows."""
    line: int = field(default=0, compare=False)
    """Where the file says so, for messages."""

    @property
    def definition(self) -> str:
        """One text per meaning, whatever the spelling."""
        return f"{self.table} {self.using} {canonical_expression(self.expression)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """One desired cell."""

    name: CellName
    zone: str = "local-1"
    """Failure domain, free text for people and for placement rules."""
    accepts_tenants: bool = True
    """Whether placement may choose it; tenants already there stay when it is closed."""
    port: int | None = None
    """TCP port of the tenant API; none: the provider picks one and keeps it."""
    operator_port: int | None = None
    """TCP port of the operator API, /healthz and /metrics; none: the provider picks one."""
    postgres: PostgresSpec = PostgresSpec()
    pool: PoolSpec = PoolSpec()
    sequencer: SequencerSpec = SequencerSpec()
    vacuum: tuple[VacuumSpec, ...] = ()
    indexes: tuple[IndexSpec, ...] = ()

    def environment(self) -> dict[str, str]:
        """The tuning variables of the cell's process."""
        sequencer = self.sequencer
        return {
            "CLOISTER_CELL_NAME": self.name,
            "CLOISTER_CELL_POOL_MIN": str(self.pool.min_size),
            "CLOISTER_CELL_POOL_MAX": str(self.pool.max_size),
            "CLOISTER_CELL_SEQUENCER_BATCH_SIZE": str(sequencer.batch_size),
            "CLOISTER_CELL_SEQUENCER_LINGER_MS": str(sequencer.linger_ms),
            "CLOISTER_CELL_SEQUENCER_QUEUE_COMMANDS_MAX": str(sequencer.queue_commands_max),
            "CLOISTER_CELL_SEQUENCER_QUEUE_COMMANDS_PER_TENANT_MAX": str(
                sequencer.queue_commands_per_tenant_max
            ),
            "CLOISTER_CELL_SEQUENCER_CACHE_ACCOUNTS": str(sequencer.cache_accounts),
            "CLOISTER_CELL_SEQUENCER_ASYNC_BATCH_SIZE": str(sequencer.async_batch_size),
            "CLOISTER_CELL_SEQUENCER_ASYNC_LINGER_MS": str(sequencer.async_linger_ms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All desired cells, in the order of the file."""

    file: str
    """As it was named when it was read, for messages."""
    cells: tuple[CellSpec, ...]

    def cell(self, name: str) -> CellSpec | None:
        return next((cell for cell in self.cells if cell.name == name), None)
