"""The operator token's file. Method: real files with real modes in a temporary home."""

from pathlib import Path

import pytest

from control_plane.access import read_token, token_path
from control_plane.errors import TokenUnavailable

URL = "http://127.0.0.1:8081"


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CLOISTER_TOKEN", raising=False)
    return tmp_path


def write(text: str, mode: int) -> Path:
    path = token_path(URL)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_path_names_host_and_port(config_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_path(URL) == config_home / "cloister" / "tokens" / "127.0.0.1_8081"
    for same in ("http://localhost:8081", "http://LOCALHOST:8081/"):
        assert token_path(same) == token_path(URL)
    assert token_path("http://[::1]:8081/").name == "--1_8081"
    assert token_path("https://control.example").name == "control.example_443"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert token_path(URL) == Path("/home/ada/.config/cloister/tokens/127.0.0.1_8081")


@pytest.mark.parametrize("url", ["127.0.0.1:8081", "http://", "http://h:99999999", "ftp://h:1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(TokenUnavailable, match="not the URL of a control plane"):
        token_path(url)


def test_a_private_file_is_read() -> None:
    write("secret-token\n", 0o600)
    assert read_token(URL) == "secret-token"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_others_may_read_is_refused(mode: int) -> None:
    path = write("secret-token\n", mode)
    with pytest.raises(TokenUnavailable) as caught:
        read_token(URL)
    assert f"chmod 600 {path}" in str(caught.value)
    assert "secret-token" not in str(caught.value)


def test_no_file_names_the_remedy() -> None:
    with pytest.raises(TokenUnavailable, match="start the platform with `cloister up`"):
        read_token(URL)


def test_an_empty_file_is_no_token() -> None:
    write("\n", 0o600)
    with pytest.raises(TokenUnavailable, match="does not hold a token"):
        read_token(URL)


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("secret-token\n", 0o600)
    monkeypatch.setenv("CLOISTER_TOKEN", "another")
    assert read_token(URL) == "another"
