"""Tuning. Method: plans as values; then a real cell database, asking Postgres what it has."""

import asyncio
import textwrap
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from control_plane.errors import CellUnavailable
from control_plane.topology import VACUUM_RANGES, CellSpec, parse_topology
from control_plane.tuning import (
    BuildIndex,
    DropIndex,
    ExistingIndex,
    ObservedTuning,
    ResetOptions,
    SetOptions,
    WantedIndex,
    apply_tuning,
    plan_tuning,
)

ACME = UUID("0197a000-0000-7000-8000-000000000001")
NOTHING = ObservedTuning(options={}, indexes=[])


def spec(body: str = "") -> CellSpec:
    text = f"cells:\n  cell-a:\n{textwrap.indent(textwrap.dedent(body), '    ')}"
    return parse_topology(text, "cells.yaml").cells[0]


METADATA = spec(
    """
    indexes:
      - {name: metadata, table: ledger_transactions, using: gin,
         expression: metadata jsonb_path_ops}
    """
)
SCOPED = spec(
    """
    indexes:
      - {name: region, table: ledger_transactions, expression: "(metadata->>'region')",
         tenant: acme}
    """
)
VACUUM = spec(
    """
    vacuum:
      ledger_account_balances:
        {autovacuum_vacuum_scale_factor: 0.01, autovacuum_vacuum_threshold: 1000}
    """
)


def index_name(cell: CellSpec, organization_id: UUID | None = None) -> str:
    return WantedIndex(spec=cell.indexes[0], organization_id=organization_id).name


def existing(name: str, valid: bool = True) -> ObservedTuning:
    index = ExistingIndex(name=name, table="ledger_transactions", valid=valid)
    return ObservedTuning(options={}, indexes=[index])


def test_nothing_desired_and_nothing_there_is_nothing_to_do() -> None:
    plan = plan_tuning(spec(), NOTHING, {})
    assert (plan.actions, plan.waiting) == ([], [])


def test_options_are_set_changed_and_reset() -> None:
    observed = ObservedTuning(
        options={
            "ledger_account_balances": {
                "autovacuum_vacuum_threshold": "1000",
                "autovacuum_vacuum_cost_delay": "1",
            },
            "journal": {"autovacuum_vacuum_threshold": "5"},
        },
        indexes=[],
    )
    assert plan_tuning(VACUUM, observed, {}).actions == [
        ResetOptions(table="journal", names=["autovacuum_vacuum_threshold"]),
        SetOptions(
            table="ledger_account_balances", options={"autovacuum_vacuum_scale_factor": "0.01"}
        ),
        ResetOptions(table="ledger_account_balances", names=["autovacuum_vacuum_cost_delay"]),
    ]


def test_an_absent_index_is_built_and_a_valid_one_left_alone() -> None:
    name = index_name(METADATA)
    wanted = WantedIndex(spec=METADATA.indexes[0], organization_id=None)
    assert plan_tuning(METADATA, NOTHING, {}).actions == [BuildIndex(index=wanted)]
    assert plan_tuning(METADATA, existing(name), {}).actions == []


def test_an_invalid_index_is_dropped_and_built() -> None:
    actions = plan_tuning(METADATA, existing(index_name(METADATA), valid=False), {}).actions
    assert [type(action) for action in actions] == [DropIndex, BuildIndex]


def test_a_changed_definition_keeps_the_former_index_until_the_new_one_serves() -> None:
    former = "custom_metadata_00000000"
    assert [type(a) for a in plan_tuning(METADATA, existing(former), {}).actions] == [BuildIndex]
    both = ObservedTuning(
        options={},
        indexes=[*existing(former).indexes, *existing(index_name(METADATA)).indexes],
    )
    actions = plan_tuning(METADATA, both, {}).actions
    assert actions == [DropIndex(name=former, reason="no longer in cells.yaml")]
    invalid = plan_tuning(METADATA, existing(former, valid=False), {}).actions
    assert [type(a) for a in invalid] == [BuildIndex, DropIndex], "an invalid one serves nobody"


def test_an_unwanted_index_is_dropped() -> None:
    actions = plan_tuning(spec(), existing("custom_metadata_00000000"), {}).actions
    assert [type(action) for action in actions] == [DropIndex]


def test_a_tenants_index_waits_for_its_tenant_and_goes_with_it() -> None:
    waiting = plan_tuning(SCOPED, NOTHING, {})
    assert waiting.actions == []
    assert waiting.waiting == ["index region waits for tenant acme to be created"]
    assert len(plan_tuning(SCOPED, NOTHING, {"acme": ACME}).actions) == 1
    gone = plan_tuning(SCOPED, existing(index_name(SCOPED, ACME)), {})
    assert [type(action) for action in gone.actions] == [DropIndex]


def test_names_fit_and_differ_by_meaning_only() -> None:
    longest = spec(f"indexes: [{{name: {'n' * 44}, table: journal, expression: 'seq'}}]")
    assert len(index_name(longest)) <= 63
    respelled = spec(
        """
        indexes:
          - name: metadata
            table: ledger_transactions
            using: gin
            expression: "METADATA   jsonb_path_ops"
        """
    )
    assert index_name(respelled) == index_name(METADATA)
    assert index_name(SCOPED, ACME) != index_name(SCOPED)


async def ask(dsn: str, query: str, *parameters: object) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(query, parameters)  # type: ignore[arg-type]
        return await cursor.fetchall() if cursor.description else []


async def options(dsn: str, table: str) -> list[str]:
    rows = await ask(dsn, "SELECT unnest(reloptions) FROM pg_class WHERE relname = %s", table)
    return sorted(row[0] for row in rows)


async def indexes(dsn: str) -> dict[str, str]:
    query = "SELECT indexname, indexdef FROM pg_indexes WHERE indexname LIKE 'custom%%'"
    return dict(await ask(dsn, query))


async def test_the_schema_itself_leaves_autovacuum_and_the_prefix_to_tuning(cell_dsn: str) -> None:
    report = await apply_tuning(cell_dsn, spec(), {})
    assert report.sentence == "tuned as desired"


async def test_vacuum_options_are_in_pg_class(cell_dsn: str) -> None:
    before = await options(cell_dsn, "ledger_account_balances")
    report = await apply_tuning(cell_dsn, VACUUM, {})
    assert report.sentence == (
        "set autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000"
        " on ledger_account_balances"
    )
    assert await options(cell_dsn, "ledger_account_balances") == [
        "autovacuum_vacuum_scale_factor=0.01",
        "autovacuum_vacuum_threshold=1000",
        *before,
    ]
    assert (await apply_tuning(cell_dsn, VACUUM, {})).sentence == "tuned as desired"
    await apply_tuning(cell_dsn, spec(), {})
    assert await options(cell_dsn, "ledger_account_balances") == before


async def test_every_option_of_the_file_is_one_that_postgres_takes(cell_dsn: str) -> None:
    for bound in (0, 1):
        values = ", ".join(f"{name}: {span[bound]:g}" for name, span in VACUUM_RANGES.items())
        # The format of large bounds has an exponent, which YAML reads as text.
        values = values.replace("2.14748e+09", "2147483647").replace("1e+09", "1000000000")
        values = values.replace("2e+09", "2000000000")
        report = await apply_tuning(cell_dsn, spec(f"vacuum: {{journal: {{{values}}}}}"), {})
        assert not report.failed
        assert len(await options(cell_dsn, "journal")) == len(VACUUM_RANGES)


async def test_indexes_are_in_pg_indexes(cell_dsn: str) -> None:
    await apply_tuning(cell_dsn, METADATA, {})
    name = index_name(METADATA)
    assert await indexes(cell_dsn) == {
        name: f"CREATE INDEX {name} ON public.ledger_transactions"
        " USING gin (metadata jsonb_path_ops)"
    }
    assert (await apply_tuning(cell_dsn, METADATA, {})).done == []
    await apply_tuning(cell_dsn, spec(), {})
    assert await indexes(cell_dsn) == {}


async def test_a_tenants_index_holds_its_rows_only(cell_dsn: str) -> None:
    report = await apply_tuning(cell_dsn, SCOPED, {})
    assert "waits for tenant acme" in report.sentence
    assert await indexes(cell_dsn) == {}
    report = await apply_tuning(cell_dsn, SCOPED, {"acme": ACME})
    definition = (await indexes(cell_dsn))[index_name(SCOPED, ACME)]
    assert f"WHERE (tenant_id = '{ACME}'::uuid)" in definition
    assert "((metadata ->> 'region'::text))" in definition


async def test_a_changed_definition_replaces_the_index_in_one_pass(cell_dsn: str) -> None:
    await apply_tuning(cell_dsn, METADATA, {})
    changed = spec(
        "indexes: [{name: metadata, table: ledger_transactions, using: gin, expression: metadata}]"
    )
    report = await apply_tuning(cell_dsn, changed, {})
    assert [line.split()[0] for line in report.done] == ["built", "dropped"]
    assert list(await indexes(cell_dsn)) == [index_name(changed)]


async def test_what_postgres_refuses_fails_alone_and_names_its_line(cell_dsn: str) -> None:
    await apply_tuning(cell_dsn, METADATA, {})
    mixed = spec(
        """
        indexes:
          - {name: metadata, table: ledger_transactions, expression: colour}
          - {name: sound, table: ledger_transactions, expression: description}
        """
    )
    report = await apply_tuning(cell_dsn, mixed, {})
    assert report.failed == [
        'index metadata (line 5 of cells.yaml): column "colour" does not exist'
    ]
    names = list(await indexes(cell_dsn))
    assert index_name(METADATA) in names, "the former definition still serves"
    assert any(name.startswith("custom_sound_") for name in names)


async def test_an_invalid_leftover_is_rebuilt(cell_dsn: str) -> None:
    """An interrupted build: it waits for a transaction with a snapshot, and is cancelled."""
    async with (
        await psycopg.AsyncConnection.connect(cell_dsn) as holder,
        await psycopg.AsyncConnection.connect(cell_dsn, autocommit=True) as builder,
    ):
        await holder.execute("LOCK TABLE ledger_transactions IN ROW EXCLUSIVE MODE")
        await builder.execute("SET statement_timeout = '200ms'")
        create = "CREATE INDEX CONCURRENTLY {} ON ledger_transactions USING gin ({} {})"
        with pytest.raises(psycopg.errors.QueryCanceled):
            await builder.execute(
                sql.SQL(create).format(
                    sql.Identifier(index_name(METADATA)),
                    sql.Identifier("metadata"),
                    sql.Identifier("jsonb_path_ops"),
                )
            )
        await holder.rollback()
    invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    assert await ask(cell_dsn, invalid) == [(1,)]
    report = await apply_tuning(cell_dsn, METADATA, {})
    assert [line.split()[0] for line in report.done] == ["dropped", "built"]
    assert await ask(cell_dsn, invalid) == [(0,)]


async def test_only_one_tunes_at_a_time(cell_dsn: str) -> None:
    both = await asyncio.gather(
        apply_tuning(cell_dsn, METADATA, {}), apply_tuning(cell_dsn, METADATA, {})
    )
    assert not any(report.failed for report in both)
    assert list(await indexes(cell_dsn)) == [index_name(METADATA)]


async def test_a_postgres_that_is_away_is_unavailable() -> None:
    with pytest.raises(CellUnavailable, match="cell-a cannot be tuned now"):
        await apply_tuning("host=127.0.0.1 port=1 dbname=none", METADATA, {})
