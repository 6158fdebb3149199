"""Method: files written byte by byte, sound, malformed, cut off; nothing of them may get lost."""

import gzip
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.load.checkpoint import Frontier
from control_plane.load.errors import RowRejected, SourceUnreadable
from control_plane.load.mapping import FileFormat
from control_plane.load.rejects import RejectFile
from control_plane.load.source import Record, open_source

FORM = FileFormat(delimiter=";")


def records(path: Path, form: FileFormat = FORM) -> list[Record]:
    with open_source(path, form) as source:
        return list(source.records())


def rows(path: Path, form: FileFormat = FORM) -> list[dict[str, str] | str]:
    """Each row, or the reason why it is none."""
    found: list[dict[str, str] | str] = []
    with open_source(path, form) as source:
        for record in source.records():
            try:
                found.append(source.row(record))
            except RowRejected as exc:
                found.append(str(exc))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.csv"


def test_rows_have_their_lines_and_values(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbfa;b\r\n1;" x "\r\n\r\n2;"p\r\nq;""r"""\r\n3;z')
    assert rows(file) == [
        {"a": "1", "b": "x"},
        {"a": "2", "b": 'p\r\nq;"r"'},
        {"a": "3", "b": "z"},
    ]
    assert [(r.first_line, r.last_line) for r in records(file)] == [(2, 2), (4, 5), (6, 6)]
    assert records(file)[1].raw == '2;"p\r\nq;""r"""'


def test_blanks_count_where_the_mapping_says_so(file: Path) -> None:
    file.write_bytes(b"a;b\n 1 ;\x0b\n")
    assert rows(file, FileFormat(delimiter=";", trims=False)) == [{"a": " 1 ", "b": "\x0b"}]


def test_columns_may_be_named_by_the_mapping(file: Path) -> None:
    file.write_bytes(b"1;2\n")
    assert rows(file, FileFormat(delimiter=";", columns=("x", "y"))) == [{"x": "1", "y": "2"}]


@pytest.mark.parametrize("first", [b"1;2", b'"1";2'])
def test_a_byte_order_mark_is_no_part_of_the_first_row(file: Path, first: bytes) -> None:
    form = FileFormat(delimiter=";", columns=("x", "y"))
    file.write_bytes(b"\xef\xbb\xbf" + first + b"\n")
    assert rows(file, form) == [{"x": "1", "y": "2"}]
    assert [record.raw for record in records(file, form)] == [first.decode()]


def test_a_malformed_row_costs_only_itself(file: Path) -> None:
    file.write_bytes(b'a;b\n1;"open\n2;two\n3;"x"y\n4;four;4\n5\n6;six\n')
    found = rows(file)
    assert found[1] == {"a": "2", "b": "two"}
    assert found[5] == {"a": "6", "b": "six"}
    assert [isinstance(row, str) for row in found] == [True, False, True, True, True, False]
    assert "malformed" in str(found[0])
    assert "3 values, the header 2" in str(found[3])


def test_an_open_quote_does_not_swallow_a_long_file(file: Path) -> None:
    lines = [b"%d;x\n" % n for n in range(500)]
    file.write_bytes(b'a;b\n0;"open\n' + b"".join(lines))
    found = rows(file)
    assert len(found) == 501
    assert isinstance(found[0], str)
    assert not any(isinstance(row, str) for row in found[1:])


def test_bytes_that_are_not_of_the_encoding_reject_their_row(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"a;b\n1;caf\xe9\n2;caf\xc3\xa9\n")
    found = rows(file)
    assert found == ["the row is not utf-8 text", {"a": "2", "b": "café"}]
    rejects = RejectFile(tmp_path / "rejects.csv", "utf-8")
    rejects.add(2, "why", records(file)[0].raw)
    rejects.close()
    assert b"2,why,1;caf\xe9\r\n" in rejects.path.read_bytes()
    assert rows(file, FileFormat(delimiter=";", encoding="latin-1"))[0] == {"a": "1", "b": "café"}


def test_gzip_is_read_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(b"a;b\n1;2\n"))
    assert rows(path) == [{"a": "1", "b": "2"}]
    assert records(path)[0].file_bytes == path.stat().st_size


def test_a_file_that_is_cut_off_says_where_and_is_read_until_there(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    whole = gzip.compress("".join(["a;b\n", *(f"{n};{n * n}\n" for n in range(20000))]).encode())
    path.write_bytes(whole[: len(whole) // 2])
    read: list[Record] = []
    with (
        open_source(path, FORM) as source,
        pytest.raises(SourceUnreadable, match=r"after line \d+ the file is cut off"),
    ):
        read.extend(source.records())
    assert len(read) > 5000


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"a;a\n1;2\n", "a name twice"), (b'"a;b\n1;2', "header is malformed")],
)
def test_a_header_that_cannot_be_used(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SourceUnreadable, match=reason):
        records(file)


def test_a_line_without_end_is_no_csv(file: Path) -> None:
    file.write_bytes(b"a;b\n" + b"x" * (2 << 20))
    with pytest.raises(SourceUnreadable, match="above"):
        records(file)


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_an_absent_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        records(tmp_path / name)


def test_text_that_is_not_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv.gz"
    path.write_bytes(b"a;b\n1;2\n")
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        records(path)


@given(content=st.binary(max_size=300), alphabet=st.booleans())
def test_no_byte_gets_lost(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, alphabet: bool
) -> None:
    if alphabet:  # mostly separators and quotes, where the cases are
        content = bytes(b';"\n\rab'[byte % 6] for byte in content)
    path = tmp_path_factory.mktemp("fuzz") / "data.csv"
    path.write_bytes(content)
    form = FileFormat(delimiter=";", encoding="latin-1", columns=("a", "b"))
    found = records(path, form)
    text = content.decode("latin-1")
    position = 0
    for record in found:
        at = text.index(record.raw, position)
        assert not text[position:at].strip()
        position = at + len(record.raw)
    assert not text[position:].strip()
    if found and not text[position:]:
        assert found[-1].prefix == hashlib.sha256(text.encode()).digest()


def test_the_reject_file_holds_rows_as_they_were(tmp_path: Path) -> None:
    rejects = RejectFile(tmp_path / "r.csv", "latin-1")
    assert not rejects.path.exists()
    rejects.add(7, "no → rule", '1;"a, b"')
    rejects.close()
    content = rejects.path.read_text("latin-1")
    assert content == 'line,reason,row\n7,no \\u2192 rule,"1;""a, b"""\n'
    assert rejects.count == 1


def test_the_reject_file_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    first = RejectFile(path, "utf-8")
    first.add(1, "x", "y")
    first.close()
    RejectFile(path, "utf-8").close()
    assert not path.exists()


def test_nothing_else_is_ever_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.csv"
    path.write_text("id,amount\n")
    with pytest.raises(SourceUnreadable, match="no reject file"):
        RejectFile(path, "utf-8")
    assert path.read_text() == "id,amount\n"


def record(line: int) -> Record:
    return Record(
        first_line=line, last_line=line, raw="", values=(), reason="", prefix=bytes([line]),
        file_bytes=0,
    )  # fmt: skip


@given(
    order=st.permutations(range(1, 13)),
    rejected=st.sets(st.integers(1, 12)),
    stop=st.integers(0, 12),
)
def test_the_frontier_never_passes_an_unsettled_row(
    order: list[int], rejected: set[int], stop: int
) -> None:
    frontier = Frontier(None)
    for line in range(1, 13):
        frontier.begin(record(line))
    settled = order[:stop]
    for line in settled:
        frontier.settle(record(line), None if line in rejected else f"t{line}")
    unsettled = set(range(1, 13)) - set(settled)
    assert frontier.lines == min(unsettled, default=13) - 1
    checkpoint = frontier.checkpoint("ledger", "mapping")
    assert set(checkpoint.rejected_lines) == {line for line in rejected if line <= frontier.lines}
    assert frontier.outstanding == 12 - frontier.lines
    resumed = Frontier(checkpoint)
    assert resumed.checkpoint("ledger", "mapping") == checkpoint


def test_a_reject_that_is_loaded_later_is_forgotten() -> None:
    frontier = Frontier(None)
    frontier.begin(record(1))
    frontier.settle(record(1), None)
    resumed = Frontier(frontier.checkpoint("ledger", "mapping"))
    resumed.begin(record(1))
    resumed.settle(record(1), "t1")
    assert resumed.checkpoint("ledger", "mapping").rejected_lines == ()


def test_too_many_rejects_stop_the_frontier_not_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.load.checkpoint.REJECTED_LINES_MAX", 2)
    frontier = Frontier(None)
    for line in range(1, 7):
        frontier.begin(record(line))
        frontier.settle(record(line), None if line <= 3 else "t")
    assert frontier.lines == 2
    assert frontier.outstanding == 0
