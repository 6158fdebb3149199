"""Settings. Method: environments and files in, values or the variable's name out."""

import json
from pathlib import Path

import pytest

from control_plane.errors import SettingsInvalid
from control_plane.settings import Address, CellEndpoint, read_cells_file, read_settings

COMPLETE = {
    "CLOISTER_CONTROL_CATALOG_DSN": "host=/run/x dbname=catalog password=hidden",
    "CLOISTER_CONTROL_OPERATOR_TOKEN": "operator-token-hidden",
    "CLOISTER_CONTROL_ROUTER_TOKEN": "router-token-hidden",
    "CLOISTER_CONTROL_CELLS_FILE": "/var/cells.json",
}
CELL = {
    "name": "cell-a",
    "zone": "local-1",
    "api_address": "127.0.0.1:8101",
    "operator_address": "127.0.0.1:8201",
    "operator_token": "hidden",
    "owner_dsn": "host=/run/a password=hidden",
    "auditor_dsn": "host=/run/a password=hidden",
    "mover_dsn": "host=/run/a password=hidden",
}
FILE = {
    "topology_file": None,
    "cells": [CELL],
    "router_address": "127.0.0.1:8080",
    "router_operator_address": "127.0.0.1:8090",
}


def test_a_complete_environment() -> None:
    settings = read_settings(COMPLETE)
    assert settings.listen == Address(host="127.0.0.1", port=8081)
    assert settings.cells_file == Path("/var/cells.json")
    assert "hidden" not in repr(settings)
    listen = read_settings({**COMPLETE, "CLOISTER_CONTROL_LISTEN": "[::1]:9"}).listen
    assert (listen.host, str(listen)) == ("::1", "[::1]:9")


@pytest.mark.parametrize("name", COMPLETE)
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"^{name} is not set$"):
        read_settings({**COMPLETE, name: " "})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LISTEN", "8081", "not host:port"),
        ("LISTEN", "127.0.0.1:99999", "not host:port"),
        ("OPERATOR_TOKEN", "short", "at least 16"),
        ("OPERATOR_TOKEN", "router-token-hidden", "equals"),
        ("CATALOG_DSN", "host=x port", "not a connection string"),
    ],
)
def test_an_impossible_value_is_named(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsInvalid, match=reason) as caught:
        read_settings({**COMPLETE, f"CLOISTER_CONTROL_{name}": value})
    assert f"CLOISTER_CONTROL_{name}" in str(caught.value)
    assert "hidden" not in str(caught.value)


def write(path: Path, content: object, mode: int = 0o600) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def test_the_file_of_cells(tmp_path: Path) -> None:
    found = read_cells_file(write(tmp_path / "cells.json", {**FILE, "newer": 1}))
    assert found.cells == (CellEndpoint(**CELL),)
    assert "hidden" not in repr(found)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "truncated"),
        ({**FILE, "cells": []}, "cells must be there"),
        ({**FILE, "cells": [CELL, CELL]}, "each name once"),
        ({**FILE, "cells": [{**CELL, "name": 3}]}, r"\$\.cells\[0\]\.name"),
        ({**FILE, "cells": [{**CELL, "api_address": "x"}]}, "api_address of cell-a"),
        ({"cells": [CELL]}, "topology_file"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, content: object, reason: str) -> None:
    with pytest.raises(SettingsInvalid, match=reason) as caught:
        read_cells_file(write(tmp_path / "cells.json", content))
    assert str(tmp_path / "cells.json") in str(caught.value)


def test_a_file_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="can be read by others"):
        read_cells_file(write(tmp_path / "cells.json", FILE, 0o644))


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"CLOISTER_CONTROL_CELLS_FILE .* No such file"):
        read_cells_file(tmp_path / "absent.json")
