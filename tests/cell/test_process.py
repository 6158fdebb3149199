"""Method: `python -m cell` started, stopped, killed and started again by signals, on databases that
are not ready, newer, or taken over; what it says is read from its exit code and its log.
"""

import contextlib
import json
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from cell_process import DEADLINE_S, Access, CellProcess, cell_process, running_cell
from psycopg.conninfo import make_conninfo

from cell.wire import MOVED_TO_HEADER, NOT_APPLIED_HEADER


@pytest.fixture
def cell(cell_database: Any, tmp_path: Path) -> Iterator[CellProcess]:
    with running_cell(cell_database, tmp_path) as cell:
        yield cell


def lines(cell: CellProcess) -> list[dict[str, Any]]:
    """The log, which is JSON to the last line."""
    return [json.loads(line) for line in cell.log_file.read_text().splitlines()]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def books(http: httpx.Client) -> dict[str, Any]:
    """The body of a transaction between two new accounts."""
    ledger = http.post("/api/ledgers", json={"name": "L"}).json()["id"]
    body = {"name": "A", "normal_balance": "credit", "currency": "USD", "ledger_id": ledger}
    first, second = (http.post("/api/ledger_accounts", json=body).json()["id"] for _ in range(2))
    return {
        "status": "posted",
        "ledger_entries": [
            {"ledger_account_id": first, "direction": "debit", "amount": 7},
            {"ledger_account_id": second, "direction": "credit", "amount": 7},
        ],
    }


def test_stops_in_good_order(cell: CellProcess) -> None:
    with cell.new_tenant().http() as http:
        assert http.get("/api/ping").status_code == 200
        assert cell.stop() == 0
    assert [line["message"] for line in lines(cell)] == ["ready", "stopping"]
    assert all(line["process"] == "cell-test" for line in lines(cell))


@contextlib.contextmanager
def lingering_cell(
    database: Any, directory: Path, headers: dict[str, str], **settings: str
) -> Iterator[tuple[CellProcess, httpx.Client]]:
    """A cell whose sequencer waits before each batch, so that requests are surely in flight."""
    with (
        running_cell(database, directory, SEQUENCER_LINGER_MS="400", **settings) as cell,
        cell.new_tenant().http(headers=headers) as http,
    ):
        yield cell, http


def post_while_nothing_is_written(
    database: Any, access: Access, headers: dict[str, str], *, count: int, refused_at_least: int
) -> list[httpx.Response]:
    """The answers to as many requests, the batch of the first being held up at the tenant's head
    until so many of the others have been refused."""
    with (
        access.http(headers=headers) as http,
        psycopg.connect(database.superuser_dsn) as blocker,
        ThreadPoolExecutor(count) as threads,
    ):
        mine = "SELECT FROM tenant_heads WHERE tenant_id = %s FOR UPDATE"
        blocker.execute(mine, (access.organization_id,))
        answers = [
            threads.submit(http.post, "/api/ledgers", json={"name": "L"}) for _ in range(count)
        ]
        until(lambda: sum(map(Future.done, answers)) >= refused_at_least, "some are refused")
        blocker.rollback()
        return [answer.result() for answer in answers]


def test_requests_in_flight_are_finished(cell_database: Any, tmp_path: Path) -> None:
    with (
        lingering_cell(cell_database, tmp_path, {}) as (cell, http),
        ThreadPoolExecutor(1) as thread,
        cell.operator() as operator,
    ):
        answer = thread.submit(http.post, "/api/ledgers", json={"name": "L"})
        until(lambda: operator.get("/operator/status").json()["queue_depth"] == 1, "it waits")
        assert cell.stop() == 0
        assert answer.result().status_code == 201


def test_answers_survive_kill(cell_database: Any, tmp_path: Path) -> None:
    """The same idempotency key after a kill -9 gives the same bytes, from the journal."""
    with running_cell(cell_database, tmp_path) as first:
        access = first.new_tenant()
        headers = {"Idempotency-Key": "k"}
        with access.http() as http:
            body = books(http)
            shown = {"show_resulting_ledger_account_balances": True}
            body["ledger_entries"][0] |= shown
            before = http.post("/api/ledger_transactions", json=body, headers=headers)
            account = http.get(
                f"/api/ledger_accounts/{body['ledger_entries'][0]['ledger_account_id']}"
            )
        first.process.kill()
        first.process.wait()
    with running_cell(cell_database, tmp_path) as second:
        moved = Access(
            base_url=second.base_url,
            organization_id=access.organization_id,
            api_key=access.api_key,
            other_api_key=access.other_api_key,
        )
        with moved.http() as http:
            after = http.post("/api/ledger_transactions", json=body, headers=headers)
            elsewhere = http.post("/api/ledgers", json={"name": "n"}, headers=headers)
            assert after.status_code == before.status_code == elsewhere.status_code == 201
            assert after.content == before.content == elsewhere.content
            # Nothing is in memory yet: this one is read from the database.
            path = account.request.url.path
            assert http.get(path).content == account.content


def test_idempotency_key_in_flight(cell: CellProcess, cell_database: Any) -> None:
    key = {"Idempotency-Key": "k"}
    answers = post_while_nothing_is_written(
        cell_database, cell.new_tenant(), key, count=5, refused_at_least=4
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    for answer in answers:
        if answer.status_code == 409:
            assert answer.headers["x-should-retry"] == "true"
            assert 0 < int(answer.headers["retry-after-ms"]) <= 1000


def test_full_queue(cell_database: Any, tmp_path: Path) -> None:
    with running_cell(cell_database, tmp_path, SEQUENCER_QUEUE_COMMANDS_MAX="1") as cell:
        access = cell.new_tenant()
        answers = post_while_nothing_is_written(
            cell_database, access, {}, count=6, refused_at_least=1
        )
        made = [answer for answer in answers if answer.status_code == 201]
        assert made
        with access.http() as http:
            assert len(http.get("/api/ledgers").json()) == len(made)
    refused = [answer for answer in answers if answer.status_code != 201]
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers[NOT_APPLIED_HEADER] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["errors"]["code"] == "too_many_requests"


@pytest.mark.parametrize(
    ("state", "write_status", "read_status"), [("fenced", 503, 200), ("moved", 421, 421)]
)
def test_verdicts(
    cell: CellProcess, cell_database: Any, state: str, write_status: int, read_status: int
) -> None:
    access = cell.new_tenant()
    with psycopg.connect(cell_database.writer_dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE tenant_heads SET state = %s, epoch = 7, moved_to = %s WHERE tenant_id = %s",
            (state, "cell-b" if state == "moved" else None, access.organization_id),
        )
    with access.http() as http:
        write = http.post("/api/ledgers", json={"name": "n"}, headers={"Idempotency-Key": "k"})
        assert write.status_code == write_status
        assert write.headers[NOT_APPLIED_HEADER] == state
        assert write.headers["cloister-epoch"] == "7"
        assert write.headers.get(MOVED_TO_HEADER) == ("cell-b" if state == "moved" else None)
        read = http.get("/api/ledgers")
        assert read.status_code == read_status
        assert read.headers.get(NOT_APPLIED_HEADER) == (None if state == "fenced" else state)


def test_a_second_cell_fences_the_first(
    cell: CellProcess, cell_database: Any, tmp_path: Path
) -> None:
    access = cell.new_tenant()
    (tmp_path / "second").mkdir()
    with running_cell(cell_database, tmp_path / "second"), access.http() as http:
        refused = http.post("/api/ledgers", json={"name": "n"})
        assert refused.status_code in (429, 503), refused.text
        assert cell.process.wait(DEADLINE_S) == 3
    assert lines(cell)[-1]["level"] == "critical"
    assert "fenced" in lines(cell)[-1]["message"]


@pytest.fixture
def unmigrated(cell_database: Any) -> Iterator[Any]:
    """The database as it is before its migrations, as far as a cell can tell."""
    with psycopg.connect(cell_database.superuser_dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE schema_migrations RENAME TO schema_migrations_hidden")
        yield cell_database
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            connection.execute("ALTER TABLE schema_migrations_hidden RENAME TO schema_migrations")


def test_waits_for_its_schema(unmigrated: Any, tmp_path: Path) -> None:
    cell = cell_process(unmigrated, tmp_path)
    cell.start()
    try:
        with cell.operator() as operator:

            def unhealthy_for(reason: str) -> bool:
                with contextlib.suppress(httpx.TransportError):
                    answer = operator.get("/healthz")
                    return answer.status_code == 503 and reason in answer.json()["reason"]
                return False

            until(lambda: unhealthy_for("schema version none"), "says that it waits")
            with psycopg.connect(unmigrated.superuser_dsn, autocommit=True) as connection:
                connection.execute(
                    "ALTER TABLE schema_migrations_hidden RENAME TO schema_migrations"
                )
            cell.wait_until_healthy()
    finally:
        assert cell.stop() == 0
    assert [line["message"] for line in lines(cell)] == ["not ready", "ready", "stopping"]


def test_stops_while_it_waits(unmigrated: Any, tmp_path: Path) -> None:
    cell = cell_process(unmigrated, tmp_path)
    cell.start()
    until(lambda: "not ready" in cell.log_file.read_text(), "waits")
    assert cell.stop() == 0


def test_stops_while_postgres_is_away(cell: CellProcess, cell_database: Any) -> None:
    """Method: the database takes no connections any more, and a request waits for it."""
    elsewhere = make_conninfo(cell_database.superuser_dsn, dbname="postgres")
    with (
        cell.new_tenant().http() as http,
        cell.operator() as operator,
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(elsewhere, autocommit=True) as connection,
    ):
        assert http.get("/api/ping").status_code == 200
        set_open: Any = f'ALTER DATABASE "{cell_database.name}" ALLOW_CONNECTIONS %s'
        connection.execute(set_open % "false")
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
                (cell_database.name,),
            )
            answer = thread.submit(http.post, "/api/ledgers", json={"name": "L"})
            until(lambda: operator.get("/healthz").status_code == 503, "it noticed")
            assert cell.stop() == 0
            assert answer.result().status_code in (429, 503)
        finally:
            connection.execute(set_open % "true")


def test_newer_schema(cell_database: Any, tmp_path: Path) -> None:
    with psycopg.connect(cell_database.superuser_dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations (version) VALUES (9999)")
        try:
            cell = cell_process(cell_database, tmp_path)
            cell.start()
            assert cell.process.wait(DEADLINE_S) == 4
        finally:
            connection.execute("DELETE FROM schema_migrations WHERE version = 9999")
    assert "9999" in lines(cell)[-1]["reason"]


def test_migrates_where_it_may(make_cell_database: Any, tmp_path: Path) -> None:
    with make_cell_database() as database:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public AUTHORIZATION cloister_owner")
        with (
            running_cell(database, tmp_path, OWNER_DSN=database.owner_dsn) as cell,
            cell.new_tenant().http() as http,
        ):
            assert http.post("/api/ledgers", json={"name": "n"}).status_code == 201


def test_port_that_is_taken(cell_database: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("LISTEN", "OPERATOR_LISTEN"):
            cell = cell_process(cell_database, tmp_path, **{name: f"127.0.0.1:{port}"})
            assert_ends_with_one_line(cell, f"CLOISTER_CELL_{name}", str(port))


def test_socket_of_its_own_user(cell_database: Any, tmp_path: Path) -> None:
    """Killed, so that it is left behind, and started again."""
    path = tmp_path / "c.sock"
    with running_cell(cell_database, tmp_path, SOCKET=str(path)) as cell:
        cell.stop(signal.SIGKILL)
        cell.start()
        cell.wait_until_healthy()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        access = cell.new_tenant()
        transport = httpx.HTTPTransport(uds=str(path))
        credentials = (access.organization_id, access.api_key)
        with httpx.Client(transport=transport, base_url="http://cell", auth=credentials) as http:
            assert http.post("/api/ledgers", json={"name": "n"}).status_code == 201
        with access.http() as http:
            assert len(http.get("/api/ledgers").json()) == 1


def test_socket_where_something_else_is(cell_database: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    path.write_text("precious")
    cell = cell_process(cell_database, tmp_path, SOCKET=str(path))
    assert_ends_with_one_line(cell, "CLOISTER_CELL_SOCKET", str(path))
    assert path.read_text() == "precious"


def test_setting_that_is_missing(cell_database: Any, tmp_path: Path) -> None:
    cell = cell_process(cell_database, tmp_path, WRITER_DSN=None)
    assert_ends_with_one_line(cell, "CLOISTER_CELL_WRITER_DSN is not set")


def assert_ends_with_one_line(cell: CellProcess, *words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cell"],
        env=cell.environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert all(word in line for word in words)


def test_reads_and_writes_come_back_with_postgres(cell: CellProcess, cell_database: Any) -> None:
    """Method: every backend of the cell is terminated, as by a restart of Postgres."""
    with cell.new_tenant().http() as http:
        body = books(http)
        for round in range(3):
            with psycopg.connect(cell_database.superuser_dsn, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            until(lambda: http.get("/api/ledgers").status_code == 200, "reads come back")
            key = {"Idempotency-Key": f"k-{round}-{uuid.uuid4()}"}
            statuses = set()

            def post(key: dict[str, str] = key, statuses: set[int] = statuses) -> bool:
                status = http.post("/api/ledger_transactions", json=body, headers=key).status_code
                statuses.add(status)
                return status == 201

            until(post, "writes come back")
            assert statuses <= {201, 409, 429, 503}
        assert len(http.get("/api/ledger_transactions").json()) == 3
    assert cell.process.poll() is None
    assert cell.stop(signal.SIGINT) == 0
