"""The disk copy of the routing table: whole or not at all, newest first.

Method: real files; each damage a disk or a crash can do, and what is read back then.
"""

import os
from pathlib import Path

import msgspec
import pytest
from router_running import table

from router.table_file import TableFile, TableFileDamaged, decode_table, encode_table


def body(version: int) -> bytes:
    return msgspec.json.encode(table(version, {"t": ("a", 1)}, {"a": 1}))


@pytest.fixture
def file(tmp_path: Path) -> TableFile:
    return TableFile(tmp_path / "table")


def version(file: TableFile) -> int | None:
    loaded, _ = file.load()
    return None if loaded is None else loaded.version


def test_nothing_there(file: TableFile) -> None:
    assert file.load() == (None, [])


def test_stored_is_loaded_and_the_copy_before_kept(file: TableFile) -> None:
    for number in (1, 2, 3):
        file.store(body(number))
        assert version(file) == number
    assert decode_table(file.previous.read_bytes()).version == 2
    assert {path.name for path in file.path.parent.iterdir()} == {"table", "table.previous"}
    for path in (file.path, file.previous):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b" ",
        lambda content: content.replace(b'"a"', b'"b"'),
        lambda content: content.replace(b"sha256=", b"sha512="),
        lambda content: content.replace(b"\n", b" "),
        lambda content: b"{}",
        lambda content: encode_table(b"{}"),
        lambda content: encode_table(b"\xff"),
    ],
)
def test_damaged_copy_is_passed_over_with_a_complaint(file: TableFile, damage: object) -> None:
    file.store(body(1))
    file.store(body(2))
    assert callable(damage)
    file.path.write_bytes(damage(file.path.read_bytes()))
    loaded, complaints = file.load()
    assert loaded is not None and loaded.version == 1
    assert len(complaints) == 1 and str(file.path) in complaints[0]
    file.previous.write_bytes(b"damaged too")
    loaded, complaints = file.load()
    assert loaded is None and len(complaints) == 2


def test_lost_copy_falls_back(file: TableFile) -> None:
    file.store(body(1))
    file.store(body(2))
    file.path.unlink()
    assert version(file) == 1


def test_remains_of_a_crash_are_in_nobodys_way(file: TableFile) -> None:
    file.store(body(1))
    for name in ("table.new", "table.link"):
        (file.path.parent / name).write_bytes(b"half")
    assert version(file) == 1
    file.store(body(2))
    assert version(file) == 2


def test_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(2)):
        TableFile(tmp_path / "absent" / "table").store(body(1))


def test_decode_names_the_damage() -> None:
    with pytest.raises(TableFileDamaged, match="checksum"):
        decode_table(encode_table(body(1)) + b" ")
