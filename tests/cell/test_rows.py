"""Rows to text and back, through a real Postgres, in every way the sequencer writes them.

Method: Hypothesis draws rows of each table whose text is as nasty as composites, arrays and JSON
can be given; they are written by INSERT and by UPDATE, read back, and must be equal in every field.
Nothing is committed.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from cell import store
from cell.ledger.model import (
    AccountBalances,
    ApiKey,
    Direction,
    Ledger,
    LedgerAccount,
    LedgerAccountStatement,
    LedgerEntry,
    LedgerTransaction,
    Status,
    TenantId,
)
from cell.rows import TABLE_OF, as_array, read_as_model, row_from

TENANT = TenantId(str(uuid.UUID(int=1)))
FRAGMENTS = (
    "", " ", "'", '"', "''", '""', "\\", "\\\\", '\\"', "\n", "\r", "\r\n", "\t", ",", ";",
    "{", "}", "{}", "[", "]", "(", ")", "()", '"(', ')"', "],[", '],["ledger",',
    '"],["entry","', "\\N", "\\.", "\n\\.\n", "null", ",null", "null,", "NULL", "nan", "true", "%s",
    "%", "$1", ":x", "--", "/*", "\x01", "\x1f", "\x7f", "\u0085", "\u2028", "\ufeff", "\u202e",
    "\u200f", "é", "e\u0301", "💰", "👩‍👩‍👧", "\U0010ffff", "\ud7ff", "\\u0000", "\\x00",
    "a", "Z", "0", " a ", "end",
)  # fmt: skip

anything = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
nasty = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join), anything)
plain = st.sampled_from(
    ("", ",null", "a,null,b", "Main", "2024-01-01 payment", "null", "a,b", "{}", "x y")
)
ids = st.uuids(version=4).map(str)
times = st.one_of(st.integers(-5, 5), st.integers(-(1 << 63), (1 << 63) - 1))
sums = st.one_of(st.integers(0, 9), st.integers(0, 10**36 - 1), st.integers(10**36, 10**60))
amounts = st.one_of(st.integers(0, 9), st.integers(0, 10**36 - 1), st.just(10**36 - 1))
directions = st.sampled_from(list(Direction))
seqs = st.integers(1, (1 << 63) - 1)
optional_ids = st.none() | ids


def metadata_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.just({}) | st.dictionaries(text, text, max_size=3)


def api_keys(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    secrets = st.text("0123456789abcdef", min_size=64, max_size=64)
    return st.builds(
        ApiKey,
        tenant_id=st.just(TENANT),
        id=ids,
        secret_sha256=secrets,
        created_at_us=times,
        revoked_at_us=st.none() | times,
        seq=seqs,
    )


def ledgers(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.builds(
        Ledger,
        tenant_id=st.just(TENANT),
        id=ids,
        name=text,
        description=st.none() | text,
        metadata=metadata_of(text),
        created_at_us=times,
        updated_at_us=times,
        discarded_at_us=st.none() | times,
        seq=seqs,
    )


def accounts(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.builds(
        LedgerAccount,
        tenant_id=st.just(TENANT),
        id=ids,
        ledger_id=ids,
        name=text,
        description=st.none() | text,
        normal_balance=directions,
        currency=text,
        currency_exponent=st.integers(0, 30),
        external_id=st.none() | text,
        ledgerable_type=st.none() | text,
        ledgerable_id=st.none() | text,
        metadata=metadata_of(text),
        created_at_us=times,
        updated_at_us=times,
        discarded_at_us=st.none() | times,
        seq=seqs,
    )


def balances(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.builds(
        AccountBalances,
        tenant_id=st.just(TENANT),
        ledger_account_id=ids,
        pending_debits=sums,
        pending_credits=sums,
        posted_debits=sums,
        posted_credits=sums,
        lock_version=st.integers(0, (1 << 63) - 1),
        seq=seqs,
    )


def transactions(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    def settled(row: Any) -> Any:
        posted_at_us = row.created_at_us if row.status is Status.POSTED else None
        return replace(row, posted_at_us=posted_at_us)

    return st.builds(
        LedgerTransaction,
        tenant_id=st.just(TENANT),
        id=ids,
        ledger_id=ids,
        status=st.sampled_from(list(Status)),
        description=st.none() | text,
        external_id=st.none() | text,
        ledgerable_type=st.none() | text,
        ledgerable_id=st.none() | text,
        reverses_id=optional_ids,
        reversed_by_id=optional_ids,
        partially_posts_id=optional_ids,
        archived_reason=st.none() | text,
        metadata=metadata_of(text),
        effective_at_us=times,
        posted_at_us=st.none(),
        created_at_us=times,
        updated_at_us=times,
        version=st.integers(0, (1 << 31) - 1),
        seq=seqs,
    ).map(settled)


def entries(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    def settled(row: Any) -> Any:
        version = None if row.discarded_at_us is None else row.lock_version
        return replace(row, discarded_lock_version=version)

    return st.builds(
        LedgerEntry,
        tenant_id=st.just(TENANT),
        id=ids,
        ledger_transaction_id=ids,
        ledger_account_id=ids,
        direction=directions,
        status=st.sampled_from(list(Status)),
        amount=amounts,
        currency=text,
        currency_exponent=st.integers(0, 30),
        normal_balance=directions,
        lock_version=seqs,
        resulting_pending_debits=sums,
        resulting_pending_credits=sums,
        resulting_posted_debits=sums,
        resulting_posted_credits=sums,
        shows_resulting_balances=st.booleans(),
        metadata=metadata_of(text),
        effective_at_us=times,
        created_at_us=times,
        updated_at_us=times,
        discarded_at_us=st.none() | times,
        discarded_lock_version=st.none(),
        seq=seqs,
    ).map(settled)


def statements(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    def ordered(row: Any) -> Any:
        return replace(row, upper_bound_us=max(row.lower_bound_us, row.upper_bound_us))

    return st.builds(
        LedgerAccountStatement,
        tenant_id=st.just(TENANT),
        id=ids,
        ledger_id=ids,
        ledger_account_id=ids,
        description=st.none() | text,
        metadata=metadata_of(text),
        normal_balance=directions,
        currency=text,
        currency_exponent=st.integers(0, 30),
        lower_bound_us=times,
        upper_bound_us=times,
        lock_version=seqs,
        starting_pending_debits=sums,
        starting_pending_credits=sums,
        starting_posted_debits=sums,
        starting_posted_credits=sums,
        ending_pending_debits=sums,
        ending_pending_credits=sums,
        ending_posted_debits=sums,
        ending_posted_credits=sums,
        created_at_us=times,
        updated_at_us=times,
        seq=seqs,
    ).map(ordered)


ROWS = {
    ApiKey: api_keys,
    Ledger: ledgers,
    LedgerAccount: accounts,
    AccountBalances: balances,
    LedgerTransaction: transactions,
    LedgerEntry: entries,
    LedgerAccountStatement: statements,
}
property_settings = settings(
    max_examples=40,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def id_of(row: Any) -> str:
    return str(row.ledger_account_id if isinstance(row, AccountBalances) else row.id)


@pytest.fixture
def connection(lasting_cell_database: Any) -> Iterator[psycopg.Connection[Any]]:
    """The writer, in a database transaction that is rolled back."""
    with psycopg.connect(lasting_cell_database.writer_dsn) as connection:
        read_as_model(connection)  # type: ignore[arg-type]  # registers loaders, on either kind
        yield connection
        connection.rollback()


def read(connection: psycopg.Connection[Any], row_type: Any) -> dict[str, Any]:
    table = TABLE_OF[row_type]
    found = connection.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}").fetchall()
    return {id_of(row): row for row in (row_from(row_type, values) for values in found)}


def write_and_read(connection: Any, rows: list[Any], others: list[Any]) -> None:
    """INSERT, then UPDATE to what the others are; read after each."""
    row_type = type(rows[0])
    table = TABLE_OF[row_type]
    key = table.key
    expected = {id_of(row): row for row in rows}
    rows = list(expected.values())
    # The others take the ids, and keep what never changes and may be unique.
    changed = [
        type(row)(**{**asdict(other), key: id_of(row)})
        for row, other in zip(rows, others, strict=False)
    ]
    assert connection.info.transaction_status.name == "IDLE"
    connection.execute(store._INSERT[row_type], (as_array(rows, table),))
    assert read(connection, row_type) == expected
    # What never changes, the writer may not update.
    if changed and row_type is not LedgerAccountStatement:
        connection.execute(store._UPDATE[row_type], (as_array(changed, table),))
        assert read(connection, row_type) == expected | {id_of(row): row for row in changed}
    connection.rollback()


@pytest.mark.parametrize("row_type", ROWS, ids=lambda row_type: row_type.__name__)
@pytest.mark.parametrize("text", [nasty, plain], ids=["nasty", "plain"])
def test_rows_read_back_as_they_were_written(
    connection: psycopg.Connection[Any], row_type: Any, text: st.SearchStrategy[str]
) -> None:
    some = st.lists(ROWS[row_type](text), min_size=1, max_size=5)

    @property_settings
    @given(rows=some, others=some)
    def holds(rows: list[Any], others: list[Any]) -> None:
        connection.rollback()
        write_and_read(connection, rows, others)

    holds()


LEDGER = Ledger(
    tenant_id=TENANT,
    id=str(uuid.UUID(int=2)),
    name="",
    description=None,
    metadata={},
    created_at_us=0,
    updated_at_us=0,
    discarded_at_us=None,
    seq=1,
)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=ascii)
def test_each_fragment_in_every_place(connection: psycopg.Connection[Any], fragment: str) -> None:
    """Alone, doubled, at both ends, in metadata, beside a missing value, among plain rows."""
    texts = (fragment, fragment * 2, f"{fragment}x{fragment}", f"\n{fragment}\n", f'"{fragment}"')
    rows: list[Any] = [replace(LEDGER, id=str(uuid.UUID(int=100)), name="plain")]
    for number, text in enumerate(texts):
        fields: list[Any] = [
            {"name": text},
            {"name": "n", "description": text},
            {"name": text, "metadata": {text: text}},
        ]
        for place, field in enumerate(fields):
            id = str(uuid.UUID(int=1000 + 10 * number + place))
            rows.append(replace(LEDGER, id=id, **field))
    write_and_read(connection, rows, list(reversed(rows)))
    for row in rows:
        write_and_read(connection, [row], [])


def test_very_long_text(connection: psycopg.Connection[Any]) -> None:
    long = '\\"\n,💰' * 50_000
    row = replace(LEDGER, name=long, description="x" * 2_000_000, metadata={"k" * 70_000: long})
    write_and_read(connection, [row], [replace(row, name="short")])


@property_settings
@given(numbers=st.lists(sums, min_size=4, max_size=4), amount=amounts)
@example(numbers=[10**36 - 1, 10**36, 10**37 + 1, 2**128], amount=10**36 - 1)
@example(numbers=[2**53 + 1, 2**63, 2**64, 2**64 - 1], amount=2**64 + 1)
def test_integers_are_exact(
    connection: psycopg.Connection[Any], numbers: list[int], amount: int
) -> None:
    connection.rollback()
    names = ("pending_debits", "pending_credits", "posted_debits", "posted_credits")
    row = AccountBalances(
        tenant_id=TENANT,
        ledger_account_id=str(uuid.UUID(int=3)),
        lock_version=1,
        seq=1,
        **dict(zip(names, numbers, strict=True)),
    )
    write_and_read(connection, [row], [])
    assert all(type(each) is int for each in numbers)


@pytest.mark.parametrize("row_type", ROWS, ids=lambda row_type: row_type.__name__)
def test_many_rows_at_once(connection: psycopg.Connection[Any], row_type: Any) -> None:
    """Plain and nasty ones mixed, more than a batch usually has."""
    draw = ROWS[row_type](plain), ROWS[row_type](nasty)

    @settings(property_settings, max_examples=3)
    @given(st.lists(draw[0], min_size=2, max_size=2), st.lists(draw[1], min_size=2, max_size=2))
    def holds(simple: list[Any], nasty_ones: list[Any]) -> None:
        connection.rollback()
        rows = [
            type(row)(**{**asdict(row), TABLE_OF[row_type].key: str(uuid.UUID(int=number))})
            for number, row in enumerate((simple + nasty_ones) * 100)
        ]
        others = rows[::-1]
        if row_type in (LedgerAccount, LedgerTransaction):
            # External ids are unique in a ledger.
            rows = [replace(row, ledger_id=str(uuid.uuid4())) for row in rows]
            others = [replace(row, ledger_id=str(uuid.uuid4())) for row in others]
        write_and_read(connection, rows, others)

    holds()


REFUSED = {
    "NUL": {"name": "a\0b"},
    "NUL in metadata": {"name": "a", "metadata": {"k": "\0"}},
    "seq beyond 64 bits": {"name": "a", "seq": 1 << 63},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_postgres_cannot_hold_is_refused_as_such(
    connection: psycopg.Connection[Any], case: str
) -> None:
    """DataError: the sequencer takes that for the command's fault and halves the batch."""
    row = replace(LEDGER, **REFUSED[case])
    table = TABLE_OF[Ledger]
    with pytest.raises(psycopg.DataError):
        connection.execute(store._INSERT[Ledger], (as_array([row], table),))
