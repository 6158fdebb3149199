"""A cell as its users meet it: a process on a real database, tenants made over its operator API."""

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from modern_treasury import ModernTreasury

DEADLINE_S = 120.0
"""Long enough for a process to start on a busy machine."""
OnRequest = Callable[[httpx.Request], None]
TOKEN = "operator-token-of-the-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All that a client of one tenant needs; the same through a cell and through a router."""

    base_url: str
    organization_id: str
    api_key: str
    other_api_key: str
    """A second key of the same tenant."""

    def sdk(
        self, *, strict: bool = True, on_request: OnRequest | None = None, **options: Any
    ) -> ModernTreasury:
        """The official SDK, only its address changed; every request, repeats too, is told of."""
        hooks = {"request": [on_request]} if on_request else {}
        return ModernTreasury(
            organization_id=self.organization_id,
            base_url=self.base_url,
            _strict_response_validation=strict,
            http_client=httpx.Client(
                trust_env=False, verify=False, timeout=DEADLINE_S, event_hooks=hooks
            ),
            **{"api_key": self.api_key, **options},
        )

    def http(self, **options: Any) -> httpx.Client:
        """Requests as they are, for what the SDK would not send."""
        return httpx.Client(
            base_url=self.base_url,
            auth=(self.organization_id, self.api_key),
            trust_env=False,
            verify=False,
            timeout=DEADLINE_S,
            **options,
        )


@dataclass(slots=True)
class CellProcess:
    """`python -m cell` on ports of its own."""

    environment: dict[str, str]
    log_file: Path
    port: int
    operator_port: int
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cell"],
                env=self.environment,
                cwd=Path(__file__).parents[2],
                stderr=log,
            )

    def operator(self, token: str = TOKEN) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.operator_port}",
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            verify=False,
            timeout=DEADLINE_S,
        )

    def wait_until_healthy(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        said = ""
        with self.operator() as operator:
            while time.monotonic() < deadline_s:
                assert self.process.poll() is None, self.log_file.read_text()
                with contextlib.suppress(httpx.TransportError):
                    answer = operator.get("/healthz")
                    said = answer.text
                    if answer.status_code == 200:
                        return
                time.sleep(0.05)
        raise AssertionError(f"not healthy: {said}\n{self.log_file.read_text()}")

    def new_tenant(self) -> Access:
        """A tenant with two API keys."""
        organization_id = str(uuid.uuid4())
        keys = [f"ck_{secrets.token_urlsafe(32)}" for _ in range(2)]
        with self.operator() as operator:
            path = f"/operator/tenants/{organization_id}"
            _put(operator, path, {"epoch": 1})
            for key in keys:
                body = {"sha256": hashlib.sha256(key.encode()).hexdigest()}
                _put(operator, f"{path}/keys/{uuid.uuid4()}", body)
        return Access(
            base_url=self.base_url,
            organization_id=organization_id,
            api_key=keys[0],
            other_api_key=keys[1],
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


def _put(operator: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """As operators do: again, while the cell's database is too busy to do it in time."""
    deadline_s = time.monotonic() + DEADLINE_S
    answer = operator.put(path, json=body)
    while answer.status_code == 503 and time.monotonic() < deadline_s:
        answer = operator.put(path, json=body)
    answer.raise_for_status()


def cell_process(database: Any, directory: Path, **changes: str | None) -> CellProcess:
    """A cell on the database, not started; `changes` are settings, None takes one away."""
    port, operator_port = free_ports(2)
    settings = {
        "NAME": "cell-test",
        "LISTEN": f"127.0.0.1:{port}",
        "OPERATOR_LISTEN": f"127.0.0.1:{operator_port}",
        "OPERATOR_TOKEN": TOKEN,
        "WRITER_DSN": database.writer_dsn,
        "READER_DSN": database.reader_dsn,
        **changes,
    }
    environment = {name: text for name, text in os.environ.items() if "CLOISTER" not in name}
    for name, text in settings.items():
        if text is not None:
            environment[f"CLOISTER_CELL_{name}"] = text
    return CellProcess(environment, directory / "cell.log", port, operator_port)


@contextlib.contextmanager
def running_cell(database: Any, directory: Path, **changes: str | None) -> Iterator[CellProcess]:
    """A healthy cell; afterwards it is asked to stop and must do so in good order."""
    cell = cell_process(database, directory, **changes)
    cell.start()
    try:
        cell.wait_until_healthy()
        yield cell
        if cell.process.poll() is None:
            assert cell.stop() == 0, cell.log_file.read_text()
    finally:
        if cell.process.poll() is None:
            cell.process.kill()
            cell.process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]
