"""Autovacuum settings and custom indexes of one cell's Postgres, as cells.yaml wants them.

`plan_tuning` decides: desired and observed values in, actions out; pure. `apply_tuning` observes,
asks it, and acts through the owner's DSN. Every action can be repeated and none blocks writes:
storage parameters take a lock that writers do not need, indexes are built and dropped CONCURRENTLY.

Ours are all `autovacuum_*` storage parameters of the cell's tables and all indexes whose name
begins with `custom_`; the schema's own migrations leave both to us. An index's name ends with a
digest of its definition, so a changed definition is another index: it is built before the former
one is dropped, and no query is ever without.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo

from control_plane.errors import CellUnavailable
from control_plane.index_expression import compose_expression
from control_plane.topology_specs import CellSpec, IndexSpec

INDEX_PREFIX = "custom_"
_OWN_INDEX = re.compile(r"custom_(.+)_[0-9a-f]{8}")
CONNECT_S_MAX = 5
LOCK_MS_MAX = 60_000
"""How long an action waits for other database transactions; it tries again in a later pass."""
STATEMENT_MS_MAX = 6 * 3600 * 1000
"""Building an index over a large table may take hours, and holds nobody up."""
_TUNING_LOCK = 0x636C_6F69_7475_6E65
"""Names our advisory lock in the cell's database: two builders would drop each other's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedIndex:
    spec: IndexSpec
    organization_id: UUID | None
    """The tenant whose rows alone are indexed."""

    @property
    def name(self) -> str:
        scope = self.organization_id or "all"
        text = f"{self.spec.definition} {scope}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{INDEX_PREFIX}{self.spec.name}_{digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingIndex:
    name: str
    table: str
    valid: bool
    """False for what an interrupted build left: it costs every write and helps no query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTuning:
    options: Mapping[str, Mapping[str, str]]
    """Table to its autovacuum_* storage parameters."""
    indexes: Sequence[ExistingIndex]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    table: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} = {value}" for name, value in sorted(self.options.items()))
        return f"set {shown} on {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetOptions:
    table: str
    names: Sequence[str]

    def __str__(self) -> str:
        return f"reset {', '.join(self.names)} on {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildIndex:
    index: WantedIndex

    def __str__(self) -> str:
        return f"built index {self.index.name} on {self.index.spec.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DropIndex:
    name: str
    reason: str

    def __str__(self) -> str:
        return f"dropped index {self.name} ({self.reason})"


Action = SetOptions | ResetOptions | BuildIndex | DropIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlan:
    actions: Sequence[Action]
    """In the order in which they must be done."""
    waiting: Sequence[str]
    """A sentence for each index that cannot be built yet."""


OF_THE_SCHEMA: Mapping[str, Mapping[str, str]] = {
    # A queue: its rows are changed as often as they are written.
    "bulk_results": {"autovacuum_vacuum_scale_factor": "0.02"},
}
"""Storage parameters that tables are created with; what cells.yaml says goes before."""


def plan_tuning(
    spec: CellSpec, observed: ObservedTuning, tenants: Mapping[str, UUID]
) -> TuningPlan:
    """What to do to get from `observed` to `spec`. Nothing to do is an empty plan.

    tenants: slug to organization id of every tenant there is: an index is there before its tenant
    can be moved to the cell.
    """
    wanted = []
    waiting = []
    for index in spec.indexes:
        if index.tenant is None:
            wanted.append(WantedIndex(spec=index, organization_id=None))
        elif index.tenant in tenants:
            wanted.append(WantedIndex(spec=index, organization_id=tenants[index.tenant]))
        else:
            waiting.append(f"index {index.name} waits for tenant {index.tenant} to be created")
    actions = [*_plan_options(spec, observed), *_plan_indexes(wanted, observed)]
    return TuningPlan(actions=actions, waiting=waiting)


def _plan_options(spec: CellSpec, observed: ObservedTuning) -> list[Action]:
    actions: list[Action] = []
    desired = {vacuum.table: vacuum.options for vacuum in spec.vacuum}
    for table in sorted({*desired, *observed.options}):
        before = observed.options.get(table, {})
        own = OF_THE_SCHEMA.get(table, {})
        kept = {name: value for name, value in own.items() if name in before}
        after = {**kept, **desired.get(table, {})}
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        unwanted = sorted(before.keys() - after.keys())
        if changed:
            actions.append(SetOptions(table=table, options=changed))
        if unwanted:
            actions.append(ResetOptions(table=table, names=unwanted))
    return actions


def _plan_indexes(wanted: Sequence[WantedIndex], observed: ObservedTuning) -> list[Action]:
    """Four cases for an index: absent (build), invalid (drop, build), valid (nothing), unwanted.

    An unwanted index is the former definition of a wanted one, or altogether unwanted. The former
    definition stays until the new one serves queries; a failed build must not leave them with none.
    """
    actions: list[Action] = []
    existing = {index.name: index for index in observed.indexes}
    unserved = set()
    for index in wanted:
        found = existing.get(index.name)
        if found is not None and found.valid:
            continue
        unserved.add(index.spec.name)
        if found is not None:
            actions.append(DropIndex(name=index.name, reason="its build was interrupted"))
        actions.append(BuildIndex(index=index))
    names = {index.name for index in wanted}
    for found in observed.indexes:
        match = _OWN_INDEX.fullmatch(found.name)
        former = match is not None and match[1] in unserved
        if found.name not in names and not (former and found.valid):
            actions.append(DropIndex(name=found.name, reason="no longer in cells.yaml"))
    return actions


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """What one pass did."""

    done: Sequence[str] = ()
    waiting: Sequence[str] = ()
    failed: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        parts = [*self.done, *self.waiting, *(f"failed: {reason}" for reason in self.failed)]
        return "; ".join(parts) or "tuned as desired"


TRY_LOCK: LiteralString = "SELECT pg_try_advisory_lock(%s)"


async def apply_tuning(owner_dsn: str, spec: CellSpec, tenants: Mapping[str, UUID]) -> TuningReport:
    """Brings one cell's Postgres to what `spec` says; one action's failure stops no other.

    Raises CellUnavailable if its Postgres cannot be reached. The schema must exist.
    """
    options = f"-c lock_timeout={LOCK_MS_MAX} -c statement_timeout={STATEMENT_MS_MAX}"
    dsn = make_conninfo(
        owner_dsn, options=options, connect_timeout=CONNECT_S_MAX, application_name="tuning"
    )
    try:
        # Autocommit: CONCURRENTLY cannot run in a database transaction.
        async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
            row = await (await connection.execute(TRY_LOCK, (_TUNING_LOCK,))).fetchone()
            if row != (True,):
                return TuningReport(waiting=["another control plane is tuning this cell"])
            return await _tune(connection, spec, tenants)
    except psycopg.OperationalError as exc:
        raise CellUnavailable(f"the Postgres of {spec.name} cannot be tuned now: {exc}") from exc


async def _tune(
    connection: AsyncConnection, spec: CellSpec, tenants: Mapping[str, UUID]
) -> TuningReport:
    done: list[str] = []
    failed: list[str] = []
    plan = plan_tuning(spec, await observe_tuning(connection), tenants)
    # At most twice: indexes replaced by those just built are dropped in the second round.
    for _ in range(2):
        for action in plan.actions:
            try:
                await connection.execute(_statement(action))
                done.append(str(action))
            except psycopg.Error as exc:
                if connection.broken:
                    raise
                failed.append(_failure(action, exc))
        if failed or not any(isinstance(action, BuildIndex) for action in plan.actions):
            break
        plan = plan_tuning(spec, await observe_tuning(connection), tenants)
    return TuningReport(done=done, waiting=plan.waiting, failed=failed)


def _failure(action: Action, exc: psycopg.Error) -> str:
    said = exc.diag.message_primary or str(exc)
    if isinstance(action, BuildIndex):
        spec = action.index.spec
        return f"index {spec.name} (line {spec.line} of cells.yaml): {said}"
    return f"{action}: {said}"


OPTIONS: LiteralString = """
SELECT c.relname, split_part(option, '=', 1), split_part(option, '=', 2)
FROM pg_class c, unnest(c.reloptions) AS option
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
    AND starts_with(option, 'autovacuum_')
"""
INDEXES: LiteralString = """
SELECT i.relname, t.relname, x.indisvalid
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
WHERE i.relnamespace = 'public'::regnamespace AND starts_with(i.relname, %s)
ORDER BY i.relname
"""


async def observe_tuning(connection: AsyncConnection) -> ObservedTuning:
    """What of ours is in the cell's database now."""
    options: dict[str, dict[str, str]] = {}
    for table, name, value in await (await connection.execute(OPTIONS)).fetchall():
        options.setdefault(table, {})[name] = value
    rows = await (await connection.execute(INDEXES, (INDEX_PREFIX,))).fetchall()
    indexes = [ExistingIndex(name=name, table=table, valid=valid) for name, table, valid in rows]
    return ObservedTuning(options=options, indexes=indexes)


def _statement(action: Action) -> sql.Composed:
    match action:
        case SetOptions(table=table, options=options):
            pairs = [
                sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
                for name, value in sorted(options.items())
            ]
            return _alter(table, sql.SQL("SET"), pairs)
        case ResetOptions(table=table, names=names):
            return _alter(table, sql.SQL("RESET"), [sql.Identifier(name) for name in names])
        case DropIndex(name=name):
            statement = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}")
            return statement.format(sql.Identifier("public", name))
        case BuildIndex(index=index):
            return _create_index(index)


def _alter(table: str, verb: sql.SQL, options: Sequence[sql.Composable]) -> sql.Composed:
    statement = sql.SQL("ALTER TABLE {} {} ({})")
    return statement.format(sql.Identifier("public", table), verb, sql.SQL(", ").join(options))


def _create_index(index: WantedIndex) -> sql.Composed:
    statement = sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({}){}").format(
        sql.Identifier(index.name),
        sql.Identifier("public", index.spec.table),
        sql.Identifier(index.spec.using),
        compose_expression(index.spec.expression),
        sql.SQL("")
        if index.organization_id is None
        # A statement that defines something takes no parameters; Literal quotes the value.
        else sql.SQL(" WHERE tenant_id = {}").format(sql.Literal(index.organization_id)),
    )
    return statement
