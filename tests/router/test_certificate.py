"""TLS for clients: the certificate of the files as they are now.

Method: two certificates that trust nobody but themselves, put in place of one another under a
running router.
"""

import os
import shutil
import ssl
from pathlib import Path

import pytest
from conftest import Platform
from router_clients import Client, chunked, request
from router_running import RunningRouter, environment, free_port, start_router, wait_until

FILES = Path(__file__).with_name("certificates")


class SecureClient(Client):
    """Trusts one of the two certificates only."""

    def __init__(self, port: int, trusted: str) -> None:
        super().__init__(port)
        context = ssl.create_default_context(cafile=FILES / f"{trusted}.crt")
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            self.socket = context.wrap_socket(self.socket, server_hostname="ledger.test")
        except BaseException:
            self.socket.close()
            raise


def put(directory: Path, name: str, *suffixes: str) -> None:
    """Replace files in one step each, as those do who renew certificates."""
    for suffix in suffixes:
        shutil.copy(FILES / f"{name}.{suffix}", directory / "fresh")
        os.replace(directory / "fresh", directory / f"tls.{suffix}")


@pytest.fixture
def secure(platform: Platform, tmp_path: Path) -> RunningRouter:
    _, port = platform.echo_cell()
    platform.route_all_to(port)
    put(tmp_path, "one", "crt", "key")
    files = {"tls_certificate": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    return platform.router(**files)


def trusts(router: RunningRouter, name: str) -> bool:
    try:
        with SecureClient(router.port, name) as client:
            return client.ask(request()).status == 200
    except ssl.SSLCertVerificationError:
        return False


def test_requests_of_all_kinds_pass(secure: RunningRouter) -> None:
    with SecureClient(secure.port, "one") as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.selected_alpn_protocol() == "http/1.1"
        assert client.ask(request("POST", body=b"x" * 1_000_000)).json["body_bytes"] == 1_000_000
        head = request("POST", headers="Transfer-Encoding: chunked\r\n")
        assert client.ask(head + chunked(b"ab", b"c")).json["body_bytes"] == 3
        assert len(client.ask(request(target="/stream/3000000")).body) == 3_000_000
        client.send(request(target="/1") + request(target="/2"))
        assert [client.answer().json["target"] for _ in range(2)] == ["/1", "/2"]
        assert client.ask(request(tenant=None)).status == 401


def test_malformed_is_refused_and_closed(secure: RunningRouter) -> None:
    with SecureClient(secure.port, "one") as client:
        assert client.ask(b"BAD\r\n\r\n").status == 400
        assert client.is_closed()


def test_plain_http_is_not_answered(secure: RunningRouter) -> None:
    with Client(secure.port) as plain:
        plain.send(request())
        assert not plain.socket.recv(100).startswith(b"HTTP")


def test_handshake_without_end_is_cut(platform: Platform, tmp_path: Path) -> None:
    put(tmp_path, "one", "crt", "key")
    files = {"tls_certificate": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    router = platform.router(ready=False, header_ms_max=300, **files)
    client = platform.client(router)
    client.send(b"\x16\x03\x01")
    assert client.is_closed()


def test_renewed_files_are_read(secure: RunningRouter, tmp_path: Path) -> None:
    with SecureClient(secure.port, "one") as before:
        put(tmp_path, "two", "crt", "key")
        wait_until(lambda: trusts(secure, "two"), "the new certificate")
        assert not trusts(secure, "one")
        assert before.ask(request()).status == 200


@pytest.mark.parametrize("harm", ["half", "garbage", "gone"])
def test_files_that_do_not_fit_change_nothing(
    secure: RunningRouter, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    if harm == "half":
        put(tmp_path, "two", "crt")
    elif harm == "garbage":
        (tmp_path / "tls.key").write_text("no key")
    else:
        (tmp_path / "tls.crt").unlink()
    wait_until(lambda: "certificate unusable" in caplog.text, "the complaint")
    assert trusts(secure, "one")
    put(tmp_path, "two", "crt", "key")
    wait_until(lambda: trusts(secure, "two"), "the new certificate")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_certificate": "/nowhere.crt"}, "belong together"),
        ({"tls_certificate": "/nowhere.crt", "tls_key": "/nowhere.key"}, "are no certificate"),
        (
            {"tls_certificate": FILES / "one.crt", "tls_key": FILES / "two.key"},
            "are no certificate",
        ),
    ],
    ids=["one alone", "missing", "of two"],
)
def test_unusable_files_stop_the_process(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with start_router(environment(tmp_path, free_port(), **settings)) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.startswith("router: ") and words in error and error.count("\n") == 1
