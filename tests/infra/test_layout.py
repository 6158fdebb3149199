"""The data directory, its lock and its ports: real files, locks between real processes."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.errors import DataError, DataFormat, NotADataDirectory, PlatformRunning, PortOccupied
from infra.local import layout
from infra.local.credentials import ensure_tokens, publish_operator_token
from infra.local.layout import (
    default_data_directory,
    find_data_directory,
    hold_lock,
    lock_holder,
    open_data_directory,
)
from infra.local.ports import assign_ports, choose_port, is_free, local_range_start, require_free
from infra.local.private import ensure_private_directory, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the directory -----------------------------------------------------------------------------


def test_a_new_directory_is_private_and_opens_again(tmp_path: Path) -> None:
    data = open_data_directory(tmp_path / "some" / "where")
    assert open_data_directory(tmp_path / "some" / "where") == data
    for path in (data.root, *data.subdirectories):
        assert mode(path) == 0o700
    assert mode(data.format_file) == 0o600


def test_an_empty_directory_is_taken_and_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    assert mode(open_data_directory(tmp_path / "d").root) == 0o700


def test_a_directory_with_other_content_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()
    for use in (open_data_directory, find_data_directory):
        with pytest.raises(NotADataDirectory, match=r"thesis\.txt.*--data"):
            use(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    assert mode(tmp_path) == 0o755


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(DataError, match="--data"):
        open_data_directory(tmp_path / "f")
    with pytest.raises(NotADataDirectory, match="no directory"):
        find_data_directory(tmp_path / "f")


def test_another_format_is_refused_and_named(tmp_path: Path) -> None:
    data = open_data_directory(tmp_path / "d")
    write_private(data.format_file, "cloister data directory, format 2\n")
    for use in (open_data_directory, find_data_directory):
        with pytest.raises(DataFormat, match=r"format 2.*knows.*format 1.*run the release"):
            use(data.root)


def test_where_nothing_was_started_nothing_is_found_or_made(tmp_path: Path) -> None:
    assert find_data_directory(tmp_path / "d") is None
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [({"CLOISTER_DATA": "/x/y"}, "/x/y"), ({"HOME": "/h"}, "/h/.local/share/cloister")],
)
def test_the_default_directory(
    environ: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", environ.get("HOME", "/nowhere"))
    assert default_data_directory(environ) == Path(wanted)


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    write_private(tmp_path / "f", "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(tmp_path / "f", "new \ud800")
    assert (tmp_path / "f").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_private_directory_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(Exception, match="something else"):
        ensure_private_directory(tmp_path / "link")


# --- the lock ----------------------------------------------------------------------------------


@contextmanager
def held_by_another_process(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


HOLDER = """
import pathlib, sys, time
from infra.local.layout import hold_lock, open_data_directory
with hold_lock(open_data_directory(pathlib.Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_platforms_never_share_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LOCK_S_MAX", 0.1)
    data = open_data_directory(tmp_path / "d")
    with held_by_another_process(data.root) as process:
        assert lock_holder(data) == process.pid
        wanted = rf"pid {process.pid}\..*cloister down"
        with pytest.raises(PlatformRunning, match=wanted), hold_lock(data):
            pytest.fail("held twice")
    # The holder was killed: the system let go of its lock.
    assert lock_holder(data) is None
    with hold_lock(data):
        assert lock_holder(data) == os.getpid()
    assert lock_holder(data) is None


# --- ports -------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_occupied_port_is_refused_with_the_flag_that_changes_it() -> None:
    with listening() as port:
        assert not is_free(port)
        with pytest.raises(PortOccupied, match=rf"127\.0\.0\.1:{port}.*--router-port"):
            require_free(port, "--router-port")
    require_free(port, "--router-port")


def test_a_closing_connection_does_not_occupy_its_port() -> None:
    with listening() as port:
        pass
    address = ("127.0.0.1", port)
    with socket.create_server(address) as server, socket.create_connection(address) as client:
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""
    assert is_free(port)


def test_chosen_ports_keep_clear_of_outgoing_connections() -> None:
    assert choose_port(set()) < local_range_start()


def test_ports_are_remembered_and_chosen_again_only_if_occupied(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = assign_ports(file, ["a", "b"], {}, ())
    assert len(set(first.values())) == 2
    assert assign_ports(file, ["a", "b"], {}, ()) == first
    with socket.create_server(("127.0.0.1", first["a"])):
        second = assign_ports(file, ["a", "b"], {}, ())
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    assert assign_ports(file, ["b"], {}, ()) == {"b": first["b"]}
    assert assign_ports(file, ["a"], {}, ()) == {"a": second["a"]}


def test_fixed_and_reserved_ports_are_never_given_away(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    first = assign_ports(file, ["a", "b"], {}, ())
    second = assign_ports(file, ["a", "b", "c"], {"c": first["a"]}, {first["b"]})
    assert second["c"] == first["a"]
    assert {second["a"], second["b"]}.isdisjoint(first.values())


def test_a_damaged_port_file_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{broken")
    assert assign_ports(tmp_path / "ports.json", ["a"], {}, ()).keys() == {"a"}


# --- credentials -------------------------------------------------------------------------------


def test_tokens_are_made_once_and_kept_private(tmp_path: Path) -> None:
    data = open_data_directory(tmp_path / "d")
    first = ensure_tokens(data, ["cell-a"])
    second = ensure_tokens(data, ["cell-a", "cell-b"])
    assert (second.operator, second.router) == (first.operator, first.router)
    assert second.cells["cell-a"] == first.cells["cell-a"]
    assert len({second.operator, second.router, *second.cells.values()}) == 4
    assert mode(data.secrets / "tokens.json") == 0o600
    assert second.operator not in repr(second)


def test_damaged_tokens_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    data = open_data_directory(tmp_path / "d")
    (data.secrets / "tokens.json").write_text("{")
    with pytest.raises(DataError, match=r"tokens\.json.*Remedy: remove it"):
        ensure_tokens(data, [])


def test_the_operator_token_is_written_where_the_cli_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from control_plane.access import read_token, token_path

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CLOISTER_TOKEN", raising=False)
    tokens = ensure_tokens(open_data_directory(tmp_path / "d"), [])
    publish_operator_token("http://127.0.0.1:9081", tokens)
    assert read_token("http://127.0.0.1:9081") == tokens.operator
    assert mode(token_path("http://127.0.0.1:9081")) == 0o600
