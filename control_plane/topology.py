"""cells.yaml: the desired cells, as frozen values.

`load_topology` reads the file and either returns a `Topology` that can be run, or raises
`TopologyInvalid` with the line, reason and remedy of everything that is wrong. It starts nothing,
asks no server and reads nothing else; the provider (`infra`) runs what is described, and
`tuning.py` applies `vacuum` and `indexes`. All keys but `cells` may be left out.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from control_plane.errors import Problem, TopologyInvalid
from control_plane.index_expression import (
    ExpressionInvalid,
    Token,
    parse_expression,
)
from control_plane.postgres_parameters import (
    OWNED_PARAMETERS,
    SHARED_BUFFERS_BYTES_MAX,
    SHARED_BUFFERS_BYTES_MIN,
    ParameterRange,
    parse_size,
    render_value,
)
from control_plane.routing import CellName
from control_plane.topology_specs import (
    TABLES,
    CellSpec,
    IndexSpec,
    PoolSpec,
    PostgresSpec,
    SequencerSpec,
    Topology,
    VacuumSpec,
)
from control_plane.yaml_sections import Section, read_root, suggestion

__all__ = [
    "TABLES",
    "CellSpec",
    "IndexSpec",
    "PoolSpec",
    "PostgresSpec",
    "SequencerSpec",
    "Topology",
    "VacuumSpec",
    "load_topology",
    "parse_topology",
]

CELL_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
ZONE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
SLUG = re.compile(r"[a-z][a-z0-9-]{1,62}")
INDEX_NAME = re.compile(r"[a-z][a-z0-9_]{0,43}")
"""Short enough that Postgres keeps the whole name with our prefix and digest (63 bytes)."""

INDEX_METHODS = ("btree", "hash", "gin", "gist", "spgist", "brin")

CONNECTIONS_BESIDE_POOL = 12
"""Connections a cell's Postgres must have beyond its pool: the sequencer and its successor (2),
the control plane's migrations, tuning and observation (3), audits (2), reserved for superusers (3),
a person's psql (2)."""

VACUUM_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "autovacuum_vacuum_threshold": (0, 2_147_483_647),
        "autovacuum_vacuum_scale_factor": (0, 100),
        "autovacuum_vacuum_insert_threshold": (-1, 2_147_483_647),
        "autovacuum_vacuum_insert_scale_factor": (0, 100),
        "autovacuum_analyze_threshold": (0, 2_147_483_647),
        "autovacuum_analyze_scale_factor": (0, 100),
        "autovacuum_vacuum_cost_delay": (0, 100),
        "autovacuum_vacuum_cost_limit": (1, 10_000),
        "autovacuum_freeze_min_age": (0, 1_000_000_000),
        "autovacuum_freeze_max_age": (100_000, 2_000_000_000),
        "autovacuum_freeze_table_age": (0, 2_000_000_000),
    }
)
"""Per-table settings of `vacuum` with the values Postgres 15 and later take."""
_WITH_FRACTION = frozenset(
    name for name in VACUUM_RANGES if name.endswith(("_scale_factor", "_cost_delay"))
)


def load_topology(path: Path, *, accepted: Mapping[str, ParameterRange] | None = None) -> Topology:
    """Reads the file. Raises TopologyInvalid with every problem in it.

    accepted: what the Postgres that will run says it takes (`parse_described`); with it, unknown
    names and impossible values in `postgres.parameters` are found here rather than at its start.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
        problem = Problem(
            line=1, reason=f"cannot be read: {reason}", remedy="name the file with --file"
        )
        raise TopologyInvalid(str(path), [problem]) from exc
    return parse_topology(text, str(path), accepted=accepted)


def parse_topology(
    text: str, file: str, *, accepted: Mapping[str, ParameterRange] | None = None
) -> Topology:
    """As `load_topology`, of a text already read."""
    root = read_root(text, file)
    listed = root.section("cells", "cells")
    root.close()
    if not listed.names and not root.problems:
        root.note(root.line_of("cells"), "there are no cells", "add one, such as `cell-a: {}`")
    ports: dict[int, str] = {}
    cells = [_read_cell(listed, name, ports, accepted) for name in listed.names]
    if root.problems:
        raise TopologyInvalid(file, root.problems)
    return Topology(file=file, cells=tuple(cells))


def _read_cell(
    listed: Section,
    name: str,
    ports: dict[int, str],
    accepted: Mapping[str, ParameterRange] | None,
) -> CellSpec:
    section = listed.section(name, name)
    if not CELL_NAME.fullmatch(name):
        listed.note_key(
            name,
            f"{name!r} cannot be a cell's name",
            "use at most 40 lower-case letters, digits and -, beginning with a letter",
        )
    default = CellSpec(name=CellName(name))
    pool_section = section.section("pool")
    pool = _read_pool(pool_section)
    cell = CellSpec(
        name=default.name,
        zone=_read_zone(section, default.zone),
        accepts_tenants=section.flag("accepts_tenants", default.accepts_tenants),
        port=_read_port(section, "port", ports),
        operator_port=_read_port(section, "operator_port", ports),
        postgres=_read_postgres(section.section("postgres"), pool_section, pool, accepted),
        pool=pool,
        sequencer=_read_sequencer(section.section("sequencer")),
        vacuum=_read_vacuum(section.section("vacuum")),
        indexes=_read_indexes(section),
    )
    section.close()
    return cell


def _read_port(section: Section, key: str, ports: dict[int, str]) -> int | None:
    """ports: every port of the file so far, with its owner."""
    port = section.optional_integer(key, 1, 65535)
    if port is None:
        return None
    owner = ports.setdefault(port, f"{section.where}.{key}")
    if owner != f"{section.where}.{key}":
        section.note_key(
            key,
            f"{section.where}.{key} is {port}, which {owner} already has",
            "give each its own, or leave it out",
        )
    return port


def _read_zone(section: Section, default: str) -> str:
    zone = section.text("zone", default)
    if not ZONE_NAME.fullmatch(zone):
        section.note_key(
            "zone", f"{zone!r} cannot be a zone", "use lower-case letters, digits, - and ."
        )
    return zone


def _read_postgres(
    section: Section,
    pool_section: Section,
    pool: PoolSpec,
    accepted: Mapping[str, ParameterRange] | None,
) -> PostgresSpec:
    default = PostgresSpec()
    shared_buffers = section.text("shared_buffers", default.shared_buffers)
    size = parse_size(shared_buffers)
    if section.sound("shared_buffers"):
        if size is None:
            section.note_key(
                "shared_buffers",
                f"{shared_buffers!r} is not a size",
                "write a whole number and kB, MB, GB or TB, such as 256MB",
            )
        elif not SHARED_BUFFERS_BYTES_MIN <= size <= SHARED_BUFFERS_BYTES_MAX:
            section.note_key(
                "shared_buffers",
                f"Postgres cannot have {shared_buffers} of shared buffers",
                "take 128kB to 8TB, usually a quarter of the memory",
            )
    max_connections = section.integer("max_connections", default.max_connections, 1, 10_000, "")
    needed = pool.max_size + CONNECTIONS_BESIDE_POOL
    both_sound = section.sound("max_connections") and pool_section.sound("min_size", "max_size")
    if both_sound and max_connections < needed:
        section.note_key(
            "max_connections",
            f"{max_connections} connections are too few for a pool of {pool.max_size}"
            f" and {CONNECTIONS_BESIDE_POOL} beside it",
            f"set max_connections to at least {needed}, or lower pool.max_size",
        )
    parameters = _read_parameters(section.section("parameters"), accepted)
    section.close()
    return PostgresSpec(
        shared_buffers=shared_buffers, max_connections=max_connections, parameters=parameters
    )


def _read_parameters(
    section: Section, accepted: Mapping[str, ParameterRange] | None
) -> Mapping[str, str]:
    owned = {name.lower(): reason for name, reason in OWNED_PARAMETERS.items()}
    parameters = {}
    for name in section.names:
        value = section.scalar(name)
        if value is None:
            continue
        rendered = render_value(value)
        # An extension's parameter (with a dot) is known only once the extension is loaded.
        known = accepted.get(name.lower()) if accepted else None
        if name.lower() in owned:
            section.note_key(
                name, f"{name} is the platform's own: {owned[name.lower()]}", "remove it"
            )
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?", name):
            section.note_key(name, f"{name!r} cannot be a parameter's name", "see SHOW ALL")
        elif rendered is None:
            section.note_key(name, f"{name} has a value with control characters", "retype it")
        elif accepted and known is None and "." not in name:
            section.note_key(
                name, f"Postgres has no parameter {name!r}", _remedy_unknown(name, accepted)
            )
        elif known and (refusal := known.refusal(rendered)):
            section.note_key(name, f"{name}: {refusal}", "see the Postgres documentation")
        else:
            parameters[name] = rendered
    return MappingProxyType(parameters)


def _remedy_unknown(name: str, accepted: Mapping[str, ParameterRange]) -> str:
    remedy = suggestion(name, accepted)
    return remedy if remedy.startswith("did you") else "see SHOW ALL in psql"


def _read_pool(section: Section) -> PoolSpec:
    default = PoolSpec()
    pool = PoolSpec(
        min_size=section.integer("min_size", default.min_size, 1, 1000, "connections"),
        max_size=section.integer("max_size", default.max_size, 1, 1000, "connections"),
        pgbouncer=section.optional_text("pgbouncer"),
    )
    if section.sound("min_size", "max_size") and pool.min_size > pool.max_size:
        section.note_key(
            "min_size",
            f"{section.where}.min_size is {pool.min_size}, above max_size {pool.max_size}",
            "raise max_size or lower min_size",
        )
    if pool.pgbouncer is not None and not _is_address(pool.pgbouncer):
        section.note_key(
            "pgbouncer", f"{pool.pgbouncer!r} is not host:port", "write null, or 127.0.0.1:6432"
        )
    section.close()
    return pool


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", text)
    return match is not None and 1 <= int(match[2]) <= 65535


def _read_sequencer(section: Section) -> SequencerSpec:
    default = SequencerSpec()
    spec = SequencerSpec(
        batch_size=section.integer("batch_size", default.batch_size, 1, 20_000, "commands"),
        linger_ms=section.integer("linger_ms", default.linger_ms, 0, 1000, "milliseconds"),
        queue_commands_max=section.integer(
            "queue_commands_max", default.queue_commands_max, 1, 1_000_000, "commands"
        ),
        queue_commands_per_tenant_max=section.integer(
            "queue_commands_per_tenant_max",
            default.queue_commands_per_tenant_max,
            1,
            1_000_000,
            "commands",
        ),
        cache_accounts=section.integer(
            "cache_accounts", default.cache_accounts, 1, 10_000_000, "ledger accounts"
        ),
        async_batch_size=section.integer(
            "async_batch_size", default.async_batch_size, 1, 20_000, "rows"
        ),
        async_linger_ms=section.integer(
            "async_linger_ms", default.async_linger_ms, 0, 1000, "milliseconds"
        ),
    )
    for key in ("batch_size", "queue_commands_per_tenant_max"):
        value = getattr(spec, key)
        if section.sound(key, "queue_commands_max") and value > spec.queue_commands_max:
            section.note_key(
                key,
                f"{section.where}.{key} is {value}, above queue_commands_max"
                f" {spec.queue_commands_max}, so it could never be reached",
                f"lower {key} or raise queue_commands_max",
            )
    section.close()
    return spec


def _read_vacuum(section: Section) -> tuple[VacuumSpec, ...]:
    specs = []
    for table in section.names:
        if table not in TABLES:
            section.note_key(table, f"a cell has no table {table!r}", suggestion(table, TABLES))
            continue
        options = _read_vacuum_options(section.section(table))
        if options:
            specs.append(VacuumSpec(table=table, options=MappingProxyType(options)))
    return tuple(specs)


def _read_vacuum_options(section: Section) -> dict[str, str]:
    options = {}
    for name, (minimum, maximum) in VACUUM_RANGES.items():
        value = section.number(name)
        if value is None:
            continue
        if isinstance(value, float) and name not in _WITH_FRACTION:
            section.note_key(name, f"{name} is {value}, not a whole number", "drop the fraction")
        elif not minimum <= value <= maximum:
            section.note_key(
                name,
                f"{name} is {value}, outside {minimum:g} to {maximum:g}",
                "see autovacuum in the Postgres documentation",
            )
        else:
            options[name] = str(value)
    section.close()
    return options


def _read_indexes(section: Section) -> tuple[IndexSpec, ...]:
    specs: dict[str, IndexSpec] = {}
    for item in section.sections("indexes"):
        spec = _read_index(item)
        if spec is None:
            continue
        if spec.name in specs:
            item.note_key(
                "name",
                f"the index {spec.name!r} stands twice (first on line {specs[spec.name].line})",
                "give each its own name",
            )
        specs.setdefault(spec.name, spec)
    return tuple(specs.values())


def _read_index(item: Section) -> IndexSpec | None:
    found = len(item.problems)
    for key in ("name", "table", "expression"):
        if key not in item.names:
            item.note(item.line, f"{item.where} has no {key}", f"add `{key}: …`")
    name = item.text("name", "unnamed")
    if item.sound("name") and not INDEX_NAME.fullmatch(name):
        item.note_key(
            "name",
            f"{name!r} cannot be an index's name",
            "use at most 44 lower-case letters, digits and _, beginning with a letter",
        )
    table = item.choice("table", TABLES[0], TABLES)
    using = item.choice("using", "btree", INDEX_METHODS)
    tokens: tuple[Token, ...] = ()
    expression = item.text("expression", "tenant_id")
    if item.sound("expression"):
        try:
            tokens = parse_expression(expression)
        except ExpressionInvalid as exc:
            item.note_key(
                "expression",
                f"{expression!r} is not an index expression: {exc}",
                "write columns or expressions as in CREATE INDEX, such as `effective_at DESC, id`",
            )
    tenant = item.optional_text("tenant")
    if tenant is not None and not SLUG.fullmatch(tenant):
        item.note_key("tenant", f"{tenant!r} is not a tenant's slug", "see `cloister tenants list`")
    item.close()
    if len(item.problems) > found:
        return None
    return IndexSpec(
        name=name, table=table, using=using, expression=tokens, tenant=tenant, line=item.line
    )
