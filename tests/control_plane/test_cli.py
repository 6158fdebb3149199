"""The CLI. Method: the commands against a real control plane; their output, errors, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.access import token_path
from control_plane.cli import app
from control_plane.cli_options import control_url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CLOISTER_TOKEN", "CLOISTER_CONTROL_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def parsed(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_whole_life_of_a_tenant(control_process: Any) -> None:
    control_process.start_ready()
    path = token_path(control_process.url)
    path.parent.mkdir(parents=True)
    path.touch(0o600)
    path.write_text("operator-token-of-the-platform")
    port = ("--control-port", control_process.url.rsplit(":", 1)[1])
    control_process.wait_until(lambda: parsed("status", *port)["healthy"])

    created = parsed("tenants", "create", "acme", "--cell", "cell-b", *port)
    assert created.keys() == {"tenant", "organization_id", "api_key", "cell"}
    assert (created["tenant"], created["cell"]) == ("acme", "cell-b")
    assert [tenant["tenant"] for tenant in parsed("tenants", "list", *port)] == ["acme"]

    again = run("tenants", "create", "acme", *port)
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "error: there is a tenant 'acme' already\n"

    key = parsed("keys", "create", "acme", *port)
    assert parsed("keys", "revoke", "acme", key["key_id"], *port)["state"] == "revoked"
    states = [key["state"] for key in parsed("keys", "list", "acme", *port)]
    assert states == ["active", "revoked"]

    for command in (["status"], ["tenants", "list"], ["keys", "list", "acme"]):
        result = run(*command, *port)
        assert result.exit_code == 0, result.output
        assert created["api_key"] not in result.stdout
    assert "cell-b" in run("status", *port).stdout
    second = run("tenants", "create", "zenith", *port).stdout
    assert "API key          ck_" in second
    assert created["organization_id"] in run("tenants", "list", *port).stdout


def test_no_platform_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_TOKEN", "a-token")
    result = run("status", "--control-port", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: no control plane answers at http://127.0.0.1:1: start the platform with"
        " `cloister up`, or name its port with --control-port\n"
    )


def test_no_token_says_how_to_get_one() -> None:
    result = run("tenants", "list", "--control-port", "1")
    assert result.exit_code == 1
    assert "no operator token for http://127.0.0.1:1: start the platform" in result.stderr


def test_something_else_behind_the_port(monkeypatch: pytest.MonkeyPatch, small_cell: Any) -> None:
    monkeypatch.setenv("CLOISTER_TOKEN", "a-token")
    monkeypatch.setenv("CLOISTER_CONTROL_URL", f"http://{small_cell.address}")
    result = run("status")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: http://{small_cell.address} answered 404" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["tenants", "create"],
        ["status", "--control-port", "0"],
        ["status", "--control-port", "x"],
        ["keys", "revoke", "acme", "not-a-uuid"],
        ["tenants", "limit", "acme", "--requests-per-second", "nan"],
        ["tenants", "limit", "acme", "--requests-per-second", "inf"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_the_port_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert control_url(None) == "http://127.0.0.1:8081"
    monkeypatch.setenv("CLOISTER_CONTROL_URL", "http://10.0.0.1:9")
    assert control_url(None) == "http://10.0.0.1:9"
    assert control_url(7) == "http://127.0.0.1:7"


@pytest.mark.parametrize(
    "command",
    ["status", "tenants create", "tenants list", "keys create", "keys list", "keys revoke"],
)
def test_every_help_has_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: cloister {command}" in result.stdout
