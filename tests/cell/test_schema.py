"""The cell's schema, asked of the database itself: tables, roles, row-level security, the guard.

Method: the catalogs of a real database against our lists; every role tries what it must not be
able to do; migrations are applied to databases that have none, some, all, and more.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from cell_writing import execute, own_tenant, rows, write
from every_table import fill_tenant
from ledger_audit import assert_ledger_holds
from psycopg import errors, sql

from cell import schema
from cell.errors import SchemaMismatch
from cell.ledger.model import TenantId
from cell.schema import ROLES, SCHEMA_VERSION, create_roles_and_database, migrate, schema_version
from cell.store import Store
from cell.tables import PROJECTED_TABLES, ROW_TABLES, TENANT_TABLES

ALL_TENANT_TABLES = (*TENANT_TABLES, "tenant_heads")

COLUMNS = """
SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position)
FROM information_schema.columns WHERE table_schema = 'public' GROUP BY table_name
"""


# --- tables --------------------------------------------------------------------------------------


def test_our_lists_are_the_databases_tables(cell_database: Any) -> None:
    columns = dict(rows(cell_database.superuser_dsn, COLUMNS))
    with_tenant = {name for name, names in columns.items() if "tenant_id" in names}
    assert with_tenant == {*ALL_TENANT_TABLES, "import_progress"}
    assert columns.keys() - with_tenant == {
        "cell_head",
        "cell_incarnation",
        "schema_migrations",
    }
    for table in ROW_TABLES:
        assert columns[table.name] == list(table.columns), table.name
    assert all(names[0] == "tenant_id" for name, names in columns.items() if name in with_tenant)


def test_every_key_begins_with_the_tenant_and_ends_with_the_rows_own(cell_database: Any) -> None:
    query = """
        SELECT c.relname, i.indisprimary, array_agg(a.attname::text ORDER BY k.place)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        CROSS JOIN unnest(i.indkey::int[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique
        GROUP BY c.relname, i.indexrelid, i.indisprimary"""
    found = rows(cell_database.superuser_dsn, query)
    tenants = [
        (name, is_key, columns) for name, is_key, columns in found if name in ALL_TENANT_TABLES
    ]
    assert all(columns[0] == "tenant_id" for _, _, columns in tenants)
    keys = {name: columns for name, is_key, columns in tenants if is_key}
    assert keys.keys() == set(ALL_TENANT_TABLES)
    for table in ROW_TABLES:
        assert keys[table.name] == ["tenant_id", table.key]


def test_only_balances_change_in_place_without_touching_an_index(cell_database: Any) -> None:
    """A hot account's row has no index on what changes; else no update of it would be heap-only."""
    query = "SELECT indexdef FROM pg_indexes WHERE tablename = 'ledger_account_balances'"
    found = rows(cell_database.superuser_dsn, query)
    assert len(found) == 1
    assert found[0][0].endswith("(tenant_id, ledger_account_id)")


# --- row-level security --------------------------------------------------------------------------


def test_every_tenant_table_has_row_level_security(cell_database: Any) -> None:
    query = """
        SELECT relname, relrowsecurity,
            (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid)
        FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"""
    found = {name: (on, policies) for name, on, policies in rows(cell_database.owner_dsn, query)}
    assert found["import_progress"] == (True, 0), "for nobody who is subject to it"
    secured = {name for name, (on, _) in found.items() if on}
    assert secured == {*ALL_TENANT_TABLES, "import_progress"}
    assert all(found[name] == (True, 1) for name in ALL_TENANT_TABLES)
    bypassing = rows(cell_database.owner_dsn, "SELECT rolname FROM pg_roles WHERE rolbypassrls")
    expected = {"cloister_writer", "cloister_auditor", "cloister_mover"}
    assert {name for (name,) in bypassing} & set(ROLES) == expected


@dataclass(frozen=True)
class Filled:
    """A database with two tenants, each with a row in every table; to be read only."""

    database: Any
    tenants: tuple[TenantId, TenantId]


@pytest.fixture(scope="module")
def filled(make_cell_database: Any) -> Iterator[Filled]:
    with make_cell_database() as database:
        dsn = database.writer_dsn
        tenants = own_tenant(dsn), own_tenant(dsn)
        asyncio.run(fill(dsn, tenants))
        yield Filled(database, tenants)
        assert_ledger_holds(database.superuser_dsn)


async def fill(dsn: str, tenants: tuple[TenantId, ...]) -> None:
    async with write(dsn) as writer:
        for tenant_id in tenants:
            await fill_tenant(writer, tenant_id, dsn)


def tenants_seen(connection: psycopg.Connection[Any], table: str) -> set[str]:
    query = sql.SQL("SELECT DISTINCT tenant_id FROM {}").format(sql.Identifier(table))
    return {str(tenant_id) for (tenant_id,) in connection.execute(query).fetchall()}


@pytest.mark.parametrize("table", ALL_TENANT_TABLES)
def test_a_reader_sees_one_tenant_or_none(filled: Filled, table: str) -> None:
    one, two = filled.tenants
    with psycopg.connect(filled.database.reader_dsn) as connection:
        assert tenants_seen(connection, table) == set(), "unset"
        for tenant_id in (one, two, str(uuid.uuid4())):
            set_local = "SELECT set_config('cloister.tenant_id', %s, true)"
            connection.execute(set_local, (tenant_id,))
            assert tenants_seen(connection, table) == {tenant_id} & {one, two}
        # After the transaction the setting is there still, but empty: none again.
        connection.commit()
        assert tenants_seen(connection, table) == set(), "after a transaction that had it set"
        connection.execute("SET LOCAL cloister.tenant_id = 'no uuid'")
        with pytest.raises(errors.InvalidTextRepresentation):
            tenants_seen(connection, table)
    with psycopg.connect(filled.database.auditor_dsn) as connection:
        assert tenants_seen(connection, table) == {one, two}


@pytest.mark.parametrize("table", ALL_TENANT_TABLES)
def test_a_reader_cannot_look_around_the_policy(filled: Filled, table: str) -> None:
    with psycopg.connect(filled.database.reader_dsn, autocommit=True) as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SET row_security = off")
            tenants_seen(connection, table)
        for role in set(ROLES) - {"cloister_reader"}:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))


# --- who may do what -----------------------------------------------------------------------------

ROW_WRITES = (
    "INSERT INTO {table} SELECT * FROM {table}",
    "UPDATE {table} SET tenant_id = tenant_id",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
)
SCHEMA_CHANGES = (
    "ALTER TABLE {table} ADD COLUMN extra int",
    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "DROP TABLE {table}",
    "CREATE INDEX ON {table} (tenant_id)",
    "CREATE POLICY own_rows ON {table}",
)
OTHER_CHANGES = (
    "CREATE TABLE extra (x int)",
    "CREATE SCHEMA extra",
    "CREATE OR REPLACE FUNCTION guard_batch(bigint, uuid[], bigint[], bigint[], bigint[], bytea[],"
    " bigint[]) RETURNS void LANGUAGE sql AS ''",
    "UPDATE schema_migrations SET version = 0",
    "INSERT INTO schema_migrations VALUES (99)",
    "ALTER ROLE cloister_writer SUPERUSER",
    "COPY journal TO PROGRAM 'cat'",
)
NEVER_CHANGED = {
    "journal",
    "idempotency_keys",
    "ledger_transaction_versions",
    "ledger_account_bare_versions",
    "ledger_account_statements",
}
WRITER_MAY = {
    *(("INSERT", table) for table in ALL_TENANT_TABLES),
    *(("UPDATE", table) for table in ALL_TENANT_TABLES if table not in NEVER_CHANGED),
    ("DELETE", "idempotency_keys"),
}
MOVER_MAY = {(verb, table) for verb in ("INSERT", "UPDATE", "DELETE") for table in TENANT_TABLES}
"""But no heads: these it changes by functions that say what it must know beforehand."""


@pytest.mark.parametrize("role", ["writer", "reader", "auditor", "mover"])
def test_no_role_but_the_owner_changes_the_schema(cell_database: Any, role: str) -> None:
    with psycopg.connect(getattr(cell_database, f"{role}_dsn"), autocommit=True) as connection:
        for table in (*ALL_TENANT_TABLES, "cell_head", "cell_incarnation"):
            for statement in SCHEMA_CHANGES:
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(statement.format(table=table))
        for statement in OTHER_CHANGES:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


@pytest.mark.parametrize("role", ["writer", "reader", "auditor", "mover"])
def test_who_writes_what(cell_database: Any, role: str) -> None:
    """The writer keeps what it wrote: the journal is append-only for it, and nothing is deleted."""
    allowed = set()
    with psycopg.connect(getattr(cell_database, f"{role}_dsn"), autocommit=True) as connection:
        for table in ALL_TENANT_TABLES:
            for statement in ROW_WRITES:
                with contextlib.suppress(errors.InsufficientPrivilege):
                    connection.execute(statement.format(table=table))
                    allowed.add((statement.split()[0], table))
    assert allowed == {"writer": WRITER_MAY, "mover": MOVER_MAY}.get(role, set())


@pytest.mark.parametrize("role", ["writer", "reader", "auditor"])
def test_only_a_mover_moves(cell_database: Any, role: str) -> None:
    calls = (
        "SELECT change_head(NULL, 1, NULL, 1, NULL, NULL, NULL, 'moved', 1, NULL, false, NULL)",
        "SELECT guard_import(NULL, 1, NULL, 1, NULL, 1, NULL, 1, NULL, 1)",
        "INSERT INTO import_progress SELECT * FROM import_progress",
    )
    with psycopg.connect(getattr(cell_database, f"{role}_dsn"), autocommit=True) as connection:
        for call in calls:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(call)


def test_strangers_do_not_connect(cell_database: Any, postgres: Any) -> None:
    execute(postgres.superuser_dsn(), "CREATE ROLE stranger LOGIN PASSWORD 'secret'")
    try:
        dsn = psycopg.conninfo.make_conninfo(
            cell_database.reader_dsn, user="stranger", password="secret"
        )
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dsn)
    finally:
        execute(postgres.superuser_dsn(), "DROP ROLE stranger")


def test_the_projector_writes_the_index_of_events_only(cell_database: Any) -> None:
    allowed = set()
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        connection.execute("SET ROLE cloister_projector")
        for table in ALL_TENANT_TABLES:
            for statement in ROW_WRITES:
                with contextlib.suppress(errors.InsufficientPrivilege):
                    connection.execute(statement.format(table=table))
                    allowed.add((statement.split()[0], table))
    assert allowed == {(verb, table) for verb in ("INSERT", "UPDATE") for table in PROJECTED_TABLES}


# --- migrations ----------------------------------------------------------------------------------


@pytest.fixture
def bare_database(postgres: Any) -> Iterator[str]:
    """The name of a cell's database without any schema."""
    name = f"bare_{uuid.uuid4().hex[:12]}"
    asyncio.run(create_roles_and_database(postgres.superuser_dsn(), name, postgres.passwords))
    yield name
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    execute(postgres.superuser_dsn(), drop)


async def test_migrations_are_repeatable_and_safe_twice_at_once(
    postgres: Any, bare_database: str
) -> None:
    owner = postgres.dsn("cloister_owner", bare_database)
    reader = postgres.dsn("cloister_reader", bare_database)
    assert await schema_version(owner) is None
    assert await asyncio.gather(*(migrate(owner) for _ in range(4))) == [SCHEMA_VERSION] * 4
    assert await migrate(owner) == SCHEMA_VERSION
    assert await schema_version(reader) == SCHEMA_VERSION
    versions = rows(owner, "SELECT version FROM schema_migrations ORDER BY version")
    assert [version for (version,) in versions] == [v for v, _ in schema.MIGRATIONS]
    await create_roles_and_database(postgres.superuser_dsn(), bare_database, postgres.passwords)
    assert await schema_version(reader) == SCHEMA_VERSION


async def test_a_migration_that_fails_leaves_nothing(
    postgres: Any, bare_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = postgres.dsn("cloister_owner", bare_database)
    broken = (*schema.MIGRATIONS, (SCHEMA_VERSION + 1, "CREATE TABLE half (x int); SELECT 1/0"))
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(errors.DivisionByZero):
        await migrate(owner)
    assert await schema_version(owner) == SCHEMA_VERSION
    assert rows(owner, "SELECT to_regclass('half')") == [(None,)]
    monkeypatch.undo()
    assert await migrate(owner) == SCHEMA_VERSION


async def test_a_sequencer_needs_exactly_its_schema(postgres: Any, bare_database: str) -> None:
    writer = postgres.dsn("cloister_writer", bare_database)
    with pytest.raises(SchemaMismatch, match="none"):
        await Store(writer).open()
    owner = postgres.dsn("cloister_owner", bare_database)
    await migrate(owner)
    async with write(writer):
        pass
    execute(owner, "INSERT INTO schema_migrations VALUES (%s)", SCHEMA_VERSION + 1)
    with pytest.raises(SchemaMismatch, match="newer"):
        await Store(writer).open()
    with pytest.raises(SchemaMismatch, match="newer"):
        await migrate(owner)
    execute(owner, "DELETE FROM schema_migrations")
    with pytest.raises(SchemaMismatch):
        await Store(writer).open()


# --- the guard -----------------------------------------------------------------------------------

HASH = b"\7" * 32
GUARD = (
    "SELECT guard_batch(%s, %s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[], %b::bytea[], %s)"
)


def guard(
    connection: psycopg.Connection[Any], writer_epoch: int, heads: list[tuple[str, int, int, int]]
) -> None:
    """Each head: tenant, epoch, last sequence expected, last sequence afterwards."""
    connection.execute(
        GUARD,
        (
            writer_epoch,
            [head[0] for head in heads],
            [head[1] for head in heads],
            [head[2] for head in heads],
            [head[3] for head in heads],
            [HASH] * len(heads),
            [1] * len(heads),
        ),
    )


@pytest.fixture
def heads(cell_database: Any) -> Iterator[tuple[int, TenantId, TenantId]]:
    """The writer epoch, and two tenants whose heads a test may move: they are reset afterwards."""
    dsn = cell_database.superuser_dsn
    (writer_epoch,) = rows(dsn, "SELECT writer_epoch FROM cell_head")[0]
    yield writer_epoch, own_tenant(dsn, epoch=3), own_tenant(dsn, epoch=3)
    execute(dsn, "DELETE FROM tenant_heads")


def test_the_guard_advances_all_heads(cell_database: Any, heads: Any) -> None:
    writer_epoch, one, two = heads
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        guard(connection, writer_epoch, [])
        guard(connection, writer_epoch, [(one, 3, 0, 5), (two, 3, 0, 0)])
        guard(connection, writer_epoch, [(one, 3, 5, 6)])
        query = "SELECT last_seq, last_hash, last_at_us FROM tenant_heads WHERE tenant_id = %s"
        assert connection.execute(query, (one,)).fetchone() == (6, HASH, 1)
        assert connection.execute(query, (two,)).fetchone() == (0, HASH, 1)


@pytest.mark.parametrize(
    ("case", "bad"),
    [
        ("an older epoch", (2, 0)),
        ("a newer epoch", (4, 0)),
        ("a position behind", (3, -1)),
        ("a position ahead", (3, 1)),
    ],
)
def test_one_head_that_is_not_as_expected_refuses_the_batch(
    cell_database: Any, heads: Any, case: str, bad: tuple[int, int]
) -> None:
    writer_epoch, one, two = heads
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.Error, match="1 of 2 heads advanced") as refusal:
            guard(connection, writer_epoch, [(one, 3, 0, 1), (two, *bad, 9)])
        assert refusal.value.sqlstate == "CL002"
        seqs = connection.execute("SELECT DISTINCT last_seq FROM tenant_heads").fetchall()
        assert seqs == [(0,)]


@pytest.mark.parametrize("state", ["importing", "ready", "fenced", "moved", "quarantined"])
def test_only_an_owned_tenant_is_written(cell_database: Any, heads: Any, state: str) -> None:
    writer_epoch, one, _ = heads
    update = "UPDATE tenant_heads SET state = %s::head_state WHERE tenant_id = %s"
    execute(cell_database.superuser_dsn, update, state, one)
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as refusal:
            guard(connection, writer_epoch, [(one, 3, 0, 1)])
        assert refusal.value.sqlstate == "CL002"


def test_unknown_and_doubled_tenants_are_refused(cell_database: Any, heads: Any) -> None:
    writer_epoch, one, _ = heads
    for bad in ([(str(uuid.uuid4()), 3, 0, 1)], [(one, 3, 0, 1), (one, 3, 0, 1)]):
        with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
            with pytest.raises(psycopg.Error) as refusal:
                guard(connection, writer_epoch, bad)
            assert refusal.value.sqlstate == "CL002"


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_writer_epoch_is_refused_first(
    cell_database: Any, heads: Any, difference: int
) -> None:
    writer_epoch, one, _ = heads
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.Error) as refusal:
            guard(connection, writer_epoch + difference, [(one, 99, 99, 99)])
        assert refusal.value.sqlstate == "CL001"


def test_a_successor_waits_for_the_batch_in_flight(cell_database: Any, heads: Any) -> None:
    """And the batch after it finds the epoch over, also if it had asked before the commit."""
    writer_epoch, one, _ = heads
    raise_epoch = "UPDATE cell_head SET writer_epoch = writer_epoch + 1"
    with (
        psycopg.connect(cell_database.writer_dsn) as zombie,
        psycopg.connect(cell_database.writer_dsn) as successor,
    ):
        guard(zombie, writer_epoch, [(one, 3, 0, 1)])
        successor.execute("SET LOCAL lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            successor.execute(raise_epoch)
        successor.rollback()
        zombie.commit()
        successor.execute(raise_epoch)
        zombie.execute("SET LOCAL lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            guard(zombie, writer_epoch, [(one, 3, 1, 2)])
        zombie.rollback()
        successor.commit()
        with pytest.raises(psycopg.Error) as refusal:
            guard(zombie, writer_epoch, [(one, 3, 1, 2)])
        assert refusal.value.sqlstate == "CL001"


# --- the second line of defence ------------------------------------------------------------------

BAD_ROWS = {
    "negative amount": "UPDATE ledger_entries SET amount = -1",
    "37 digits": "UPDATE ledger_entries SET amount = 1e36",
    "half discarded": "UPDATE ledger_entries SET discarded_at_us = 1",
    "negative sum": "UPDATE ledger_account_balances SET posted_debits = -1",
    "posted without a date": "UPDATE ledger_transactions SET posted_at_us = NULL",
    "exponent": "UPDATE ledger_accounts SET currency_exponent = 31",
    "a secret that is no hash": "UPDATE api_keys SET secret_sha256 = 'secret'",
    "a hash too short": "UPDATE tenant_heads SET last_hash = 'x'",
    "epoch 0": "UPDATE tenant_heads SET epoch = 0",
}


def test_constraints(filled: Filled) -> None:
    with psycopg.connect(filled.database.superuser_dsn) as connection:
        for statement in BAD_ROWS.values():
            with pytest.raises((errors.CheckViolation, errors.NumericValueOutOfRange)):
                connection.execute(statement)
            connection.rollback()
