"""The journal: sealing, chaining, decoding, reading; and that format 1 stays as it is.

Method: samples of every command and row (`journal_samples.py`) against golden bytes kept beside
this file, hashes against Postgres' own sha256, and damaged bodies of every kind.
"""

import contextlib
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
import zstandard
from cell_writing import Writing, read, rows, transfer
from hypothesis import given
from hypothesis import strategies as st
from journal_samples import COMMANDS, FIRST_SEQ, ROWS, SAMPLES, TENANT
from msgspec.structs import replace

from cell.journal import FORMAT, SegmentBody, chained_hash, decode_body, seal_segment
from cell.ledger import commands, model
from cell.ledger.model import TenantId

HERE = Path(__file__).parent
EPOCH = 3
CONTENT = SegmentBody(
    tenant_id=TENANT,
    epoch=EPOCH,
    first_seq=FIRST_SEQ,
    last_seq=FIRST_SEQ + len(SAMPLES) - 1,
    records=SAMPLES,
)


def golden_text() -> bytes:
    """The JSON of `CONTENT`, of which line breaks are the only thing that was changed."""
    text = (HERE / "journal_format_1.json").read_bytes()
    return text.replace(b"\n ", b"").replace(b"\n", b"")


# --- format 1 ----------------------------------------------------------------------------------


def test_the_samples_show_every_command_and_every_row() -> None:
    assert {type(command) for command in COMMANDS} == set(get_args(commands.Command))
    assert {type(row) for row in ROWS} == set(get_args(model.Row))


def test_what_is_written_is_format_1_to_the_byte() -> None:
    """Who changes this needs a new FORMAT, and code that still reads this one."""
    assert FORMAT == 1
    body = seal_segment(TENANT, EPOCH, SAMPLES, bytes(32)).body
    assert zstandard.ZstdDecompressor().decompress(body) == golden_text()


def test_a_body_of_format_1_is_still_read() -> None:
    assert decode_body((HERE / "journal_format_1.zst").read_bytes()) == CONTENT
    assert decode_body(zstandard.compress(golden_text(), 19)) == CONTENT


# --- sealing -----------------------------------------------------------------------------------


def test_a_segment_says_what_it_holds() -> None:
    segment = seal_segment(TENANT, EPOCH, SAMPLES, b"\1" * 32)
    place = (segment.tenant_id, segment.epoch, segment.first_seq, segment.last_seq)
    assert place == (TENANT, EPOCH, FIRST_SEQ, FIRST_SEQ + len(SAMPLES) - 1)
    assert decode_body(segment.body) == CONTENT
    assert segment.prev_hash == b"\1" * 32
    assert segment.hash == hashlib.sha256(b"\1" * 32 + segment.body).digest()


def test_segments_chain() -> None:
    first = seal_segment(TENANT, 1, SAMPLES[:4], bytes(32))
    second = seal_segment(TENANT, 1, SAMPLES[4:], first.hash)
    other = seal_segment(TENANT, 1, SAMPLES[4:], bytes(32))
    assert second.hash == chained_hash(first.hash, second.body)
    assert (second.body, second.hash == other.hash) == (other.body, False)


@pytest.mark.parametrize("change", [{"seq": 12}, {"at_us": 1}, {"idempotency_key": "x"}])
def test_every_detail_changes_the_hash(change: dict[str, Any]) -> None:
    record = SAMPLES[0]
    hashes = {
        seal_segment(TENANT, 1, [each], bytes(32)).hash
        for each in (record, replace(record, **change))
    }
    assert len(hashes) == 2


@pytest.mark.parametrize("numbers", [(0, 2), (1, 0), (0, 0), (0, 1, 1), (0, 1, 3)])
def test_sequences_with_a_gap_are_not_sealed(numbers: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        seal_segment(TENANT, 1, [SAMPLES[number] for number in numbers], bytes(32))


def test_postgres_agrees_on_the_hash(lasting_cell_database: Any) -> None:
    segment = seal_segment(TENANT, 1, SAMPLES, hashlib.sha256().digest())
    with psycopg.connect(lasting_cell_database.auditor_dsn) as connection:
        row = connection.execute(
            "SELECT sha256(''), sha256(%s::bytea || %s)", (segment.prev_hash, segment.body)
        ).fetchone()
    assert row is not None
    assert [bytes(each) for each in row] == [segment.prev_hash, segment.hash]


# --- damaged bodies ----------------------------------------------------------------------------


def frame_claiming(size: int) -> bytes:
    """The header of a frame that says it holds so many bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


def damaged() -> Iterator[tuple[str, bytes]]:
    body = seal_segment(TENANT, 1, SAMPLES, bytes(32)).body
    yield "empty", b""
    yield "no frame", b"no frame"
    yield "half a header", body[:5]
    yield "half a frame", body[: len(body) // 2]
    yield "all but a byte", body[:-1]
    yield "a frame that claims 32 TiB", frame_claiming(1 << 45)
    yield "a frame that claims just over the limit", frame_claiming((1 << 30) + 1)
    for name, text in {
        "nothing": b"",
        "no JSON": b"\xff",
        "an object": b"{}",
        "an empty array": b"[]",
        "half the JSON": golden_text()[:-2],
        "an unknown row": golden_text().replace(b'["entry"', b'["leg"'),
        "an unknown command": golden_text().replace(b'"delete_ledger"', b'"drop_ledger"'),
        "an amount that is no integer": golden_text().replace(b"[11,", b"[11.5,", 1),
        "an amount as text": golden_text().replace(b"[11,", b'["11",', 1),
        "an unknown status": golden_text().replace(b'"archived"', b'"deleted"'),
        "two bodies": golden_text() * 2,
    }.items():
        yield name, zstandard.compress(text)


@pytest.mark.parametrize(
    ("name", "body"), list(damaged()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_damaged_body_is_a_value_error(name: str, body: bytes) -> None:
    with pytest.raises(ValueError, match="journal body"):
        decode_body(body)


@given(st.binary(max_size=200))
def test_no_bytes_do_worse(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_body(body)


@given(st.data())
def test_a_flipped_byte_is_a_value_error_or_still_a_body(data: st.DataObject) -> None:
    """The hash tells such bodies apart; decoding them must only never do worse than fail."""
    body = bytearray(seal_segment(TENANT, 1, SAMPLES[:3], bytes(32)).body)
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        decode_body(bytes(body))


# --- reading -----------------------------------------------------------------------------------


async def test_a_record_is_read_by_its_sequence(
    writer: Writing, tenant_id: TenantId, cell_database: Any
) -> None:
    """Over segments of one and of several records; never another tenant's."""
    cash, alice = await writer.accounts(tenant_id, 2)
    applied = [await writer.apply(tenant_id, transfer(cash, alice, 1), key="k")]
    several = [transfer(cash, alice, amount) for amount in (2, 3, 4)]
    answers = [writer.sequencer.enqueue(tenant_id, command) for command in several]
    applied += [(await answer).record for answer in answers]
    longest = rows(cell_database.superuser_dsn, "SELECT max(last_seq - first_seq) FROM journal")
    assert longest == [(2,)], "these were to be of one segment"
    async with read(cell_database.reader_dsn) as reader:
        for record in applied:
            assert await reader.record(tenant_id, record.seq) == record
        for seq in (0, -1, applied[-1].seq + 1, 1 << 40):
            with pytest.raises(LookupError):
                await reader.record(tenant_id, seq)
        with pytest.raises(LookupError):
            await reader.record(TENANT, 1)
