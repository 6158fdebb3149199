"""Method: the end of acceptance scenario A17: a write is applied, and the connection is cut before
its answer has arrived. Between the SDK and what serves it stands a door that lets the first request
through and ends the client's connection at the first byte of the answer, or in the midst of it;
what the SDK does then is its own. Like `test_scenarios.py` it asks nothing but `access`.
"""

# ruff: noqa: F811  # arguments of tests are named after the fixtures they import

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from cell_process import DEADLINE_S, Access
from test_scenarios import Books, books, client, credit, debit  # noqa: F401  # fixtures

READ_BYTES = 65_536
RETRIES_SAID = "x-stainless-retry-count"


@contextlib.contextmanager
def cutting(address: str, answer_bytes: int) -> Iterator[str]:
    """Another base URL of the same server; its first connection is cut so far into an answer."""
    server = urlsplit(address)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as opened:

        def serve() -> None:
            left: int | None = answer_bytes
            # Ends when the listener is closed.
            with contextlib.suppress(OSError):
                while True:
                    client_side = opened.enter_context(listener.accept()[0])
                    server_side = opened.enter_context(
                        socket.create_connection((server.hostname, server.port), DEADLINE_S)
                    )
                    for source, sink, bytes_left in (
                        (client_side, server_side, None),
                        (server_side, client_side, left),
                    ):
                        given = (source, sink, bytes_left)
                        threading.Thread(target=pass_on, args=given, daemon=True).start()
                    left = None

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def pass_on(source: socket.socket, sink: socket.socket, bytes_left: int | None) -> None:
    """Until either is closed; with a number, only as much, and then both ways are cut."""
    ending = socket.SHUT_WR if bytes_left is None else socket.SHUT_RDWR
    with contextlib.suppress(OSError):
        while content := source.recv(READ_BYTES):
            sink.sendall(content[:bytes_left])
            if bytes_left is not None:
                break
    # Not closed: a thread that reads from it would go on waiting.
    with contextlib.suppress(OSError):
        sink.shutdown(ending)


@pytest.fixture(params=[0, 150], ids=["before the answer", "in the midst of it"])
def cut_off(
    access: Access, request: pytest.FixtureRequest
) -> Iterator[tuple[Any, list[httpx.Request]]]:
    """A client whose first connection will be cut, and the requests it sends."""
    attempts: list[httpx.Request] = []
    with cutting(access.base_url, request.param) as base_url:
        through_the_door = dataclasses.replace(access, base_url=base_url)
        with through_the_door.sdk(on_request=attempts.append) as client:
            yield client, attempts


def retried(attempts: list[httpx.Request]) -> list[httpx.Request]:
    """The attempts, of which there must be two."""
    assert [each.headers[RETRIES_SAID] for each in attempts] == ["0", "1"]
    return attempts


def writes(books: Books) -> dict[str, Callable[[Any], Any]]:
    """What answers with a new ledger transaction, by name."""
    posted = books.deposit(100)
    held = books.write(debit(books.cash, 70), credit(books.alice, 70), status="pending")
    entries: Any = [debit(books.cash, 30), credit(books.alice, 30)]
    return {
        "create": lambda client: client.ledger_transactions.create(
            status="posted", ledger_entries=entries
        ),
        "reversal": lambda client: client.ledger_transactions.create_reversal(posted.id),
        "partial post": lambda client: client.ledger_transactions.create_partial_post(
            held.id, posted_ledger_entries=entries
        ),
    }


@pytest.mark.parametrize(
    ("name", "amount"), [("create", 130), ("reversal", 0), ("partial post", 130)]
)
def test_the_sdk_repeats_a_write_whose_answer_was_cut_off(
    books: Books, cut_off: tuple[Any, list[httpx.Request]], name: str, amount: int
) -> None:
    client, attempts = cut_off
    write = writes(books)[name]
    before = {each.id for each in books.transactions()}
    written = write(client)
    first, second = retried(attempts)
    # Nobody gave a key: it is the SDK's own, and the same both times.
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert {each.id for each in books.transactions()} - before == {written.id}
    assert books.client.ledger_transactions.retrieve(written.id) == written
    assert books.balances(books.alice)[0] == amount


def test_the_sdk_repeats_an_update_whose_answer_was_cut_off(
    books: Books, cut_off: tuple[Any, list[httpx.Request]]
) -> None:
    """Which goes without a key: the second time, what is posted stays as it is."""
    client, attempts = cut_off
    held = books.write(debit(books.cash, 70), credit(books.alice, 70), status="pending")
    posted = client.ledger_transactions.update(held.id, status="posted")
    for attempt in retried(attempts):
        assert "idempotency-key" not in attempt.headers
    assert posted == books.client.ledger_transactions.retrieve(held.id)
    versions = books.client.ledger_transactions.versions.list(ledger_transaction_id=held.id)
    assert [each.version for each in versions] == [1, 0]
    assert books.balances(books.alice) == (70, 70, 70)
