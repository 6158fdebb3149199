"""The disk copy of the routing table: whole or not at all, newest first.

Method: real files; each damage a disk or a crash can do, and what is read back then.
"""

import os
from pathlib import Path

import msgspec
import pytest
from router_running import whole

from router.table_file import (
    CHANGES_MAX,
    TableFile,
    TableFileDamaged,
    decode_table,
    encode_table,
)


def body(version: int) -> bytes:
    return msgspec.json.encode(whole(version, {"t": ("a", 1)}, {"a": 1}))


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
        file.store(body(number), [])
        assert version(file) == number
    assert decode_table(file.previous.read_bytes())[0].version == 2
    assert {path.name for path in file.path.parent.iterdir()} == {"table", "table.previous"}
    for path in (file.path, file.previous):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-2],
        lambda content: content.replace(b'"a"', b'"b"'),
        lambda content: content.replace(b"sha256=", b"sha512="),
        lambda content: content.replace(b"\n", b" "),
        lambda content: b"{}",
        lambda content: encode_table(b"{}"),
        lambda content: encode_table(b"\xff"),
    ],
)
def test_damaged_copy_is_passed_over_with_a_complaint(file: TableFile, damage: object) -> None:
    file.store(body(1), [])
    file.store(body(2), [])
    assert callable(damage)
    file.path.write_bytes(damage(file.path.read_bytes()))
    loaded, complaints = file.load()
    assert loaded is not None and loaded.version == 1
    assert len(complaints) == 1 and str(file.path) in complaints[0]
    file.previous.write_bytes(b"damaged too")
    loaded, complaints = file.load()
    assert loaded is None and len(complaints) == 2


def test_lost_copy_falls_back(file: TableFile) -> None:
    file.store(body(1), [])
    file.store(body(2), [])
    file.path.unlink()
    assert version(file) == 1


def test_remains_of_a_crash_are_in_nobodys_way(file: TableFile) -> None:
    file.store(body(1), [])
    for name in ("table.new", "table.link"):
        (file.path.parent / name).write_bytes(b"half")
    assert version(file) == 1
    file.store(body(2), [])
    assert version(file) == 2


def test_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(2)):
        TableFile(tmp_path / "absent" / "table").store(body(1), [])


def test_decode_names_the_damage() -> None:
    with pytest.raises(TableFileDamaged, match="checksum"):
        decode_table(encode_table(body(1)).replace(b'"a"', b'"b"'))


# -- changes


def change(since: int, epoch: int) -> bytes:
    """Tenant t, of which nothing else changes, gets the epoch."""
    told = whole(since + 1, {"t": ("a", epoch)}, {"a": 1})
    return msgspec.json.encode(msgspec.structs.replace(told, since=since))


def test_changes_are_added_to_the_table(file: TableFile) -> None:
    assert not file.is_appendable
    file.store(body(1), [change(1, 2)])
    before = file.path.read_bytes()
    assert file.is_appendable
    file.store(None, [change(2, 3), change(3, 4)])
    assert file.path.read_bytes().startswith(before)
    loaded, complaints = file.load()
    assert loaded == whole(4, {"t": ("a", 4)}, {"a": 1})
    assert complaints == []


def test_a_change_cut_short_costs_itself_only(file: TableFile) -> None:
    file.store(body(1), [change(1, 2), change(2, 3)])
    content = file.path.read_bytes()
    last_line = content.rindex(b"\n", 0, -1) + 1
    for size in range(last_line + 1, len(content) - 1):
        file.path.write_bytes(content[:size])
        loaded, complaints = file.load()
        assert loaded == whole(2, {"t": ("a", 2)}, {"a": 1})
        assert len(complaints) == 1
    file.path.write_bytes(content[:last_line])
    assert file.load() == (whole(2, {"t": ("a", 2)}, {"a": 1}), [])


def test_a_line_that_does_not_follow_is_no_part_of_it(file: TableFile) -> None:
    """Another process wrote into the file, or an older copy was put in its place."""
    file.store(body(3), [change(5, 9)])
    loaded, complaints = file.load()
    assert loaded == whole(3, {"t": ("a", 1)}, {"a": 1})
    assert len(complaints) == 1
    file.store(body(5), [change(3, 9), change(5, 2)])
    loaded, complaints = file.load()
    assert loaded is not None
    assert loaded.version == 5
    assert len(complaints) == 1


def test_nothing_is_added_to_what_another_process_wrote(file: TableFile) -> None:
    """Its last line may be cut short."""
    file.store(body(1), [])
    again = TableFile(file.path)
    again.load()
    assert not again.is_appendable


def test_nothing_is_added_after_a_failure(file: TableFile) -> None:
    file.store(body(1), [])
    file.path.unlink()
    with pytest.raises(OSError, match=os.strerror(2)):
        file.store(None, [change(1, 2)])
    assert not file.is_appendable
    file.store(body(3), [])
    assert file.is_appendable


def test_after_many_changes_the_table_is_due_to_be_written_anew(file: TableFile) -> None:
    file.store(body(1), [change(number, number + 1) for number in range(1, CHANGES_MAX)])
    assert file.is_appendable
    file.store(None, [change(CHANGES_MAX, CHANGES_MAX + 1)])
    assert not file.is_appendable
    assert version(file) == CHANGES_MAX + 1


def test_a_table_in_many_lines_is_stored_in_one(file: TableFile) -> None:
    file.store(msgspec.json.format(body(1), indent=2), [change(1, 2)])
    assert version(file) == 2
