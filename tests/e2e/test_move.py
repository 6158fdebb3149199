"""Method: tenants of a platform of real processes are moved by the commands, while a client of the
official kind of requests goes on.
"""

import json
import subprocess
import threading
import time
from typing import Any

import httpx
import pytest

RETRIED = (421, 429, 503)
"""What a router answers where nothing was done."""


class Traffic:
    """Writes one transaction after another, each until it is taken; a failure ends it."""

    def __init__(self, tenant: Any) -> None:
        self.http = httpx.Client(
            base_url=tenant.platform.ready["router"],
            auth=(tenant.organization_id, tenant.api_key),
            trust_env=False,
            verify=False,
            timeout=60,
        )
        self.ledger = self.post("/api/ledgers", {"name": "Main"}, "ledger")
        self.accounts = [
            self.post(
                "/api/ledger_accounts",
                {
                    "name": f"Account {number}",
                    "ledger_id": self.ledger,
                    "normal_balance": "credit",
                    "currency": "EUR",
                },
                f"account-{number}",
            )
            for number in range(2)
        ]
        self.written: list[str] = []
        self.error: BaseException | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def post(self, path: str, body: dict[str, Any], key: str) -> str:
        deadline = time.monotonic() + 120
        while True:
            answer = self.http.post(path, json=body, headers={"idempotency-key": key})
            if answer.status_code not in RETRIED:
                answer.raise_for_status()
                return str(answer.json()["id"])
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self.written.append(self.transfer(f"transfer-{len(self.written)}"))
        except BaseException as error:
            self.error = error

    def transfer(self, key: str) -> str:
        entries = [
            {"ledger_account_id": account, "direction": direction, "amount": 1}
            for account, direction in zip(self.accounts, ("debit", "credit"), strict=True)
        ]
        body = {"status": "posted", "ledger_entries": entries}
        return self.post("/api/ledger_transactions", body, key)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(180)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()


@pytest.fixture
def tenant(platform: Any) -> Any:
    return platform.create_tenant("mover")


def test_a_tenant_moves_there_and_back_while_it_writes(platform: Any, tenant: Any) -> None:
    source = tenant.cell
    target = "cell-b" if source == "cell-a" else "cell-a"
    with Traffic(tenant) as traffic:
        for cell in (target, source):
            report = move(platform, "mover", cell)
            assert (report["decision"], report["target"]) == ("commit", cell)
            assert report["pause_ms"] > 0
            assert report["phase"] == "can be rolled back"
            # None, if the only client was between two writes; but that is known.
            assert report["requests_held"] is not None
            check_certificate(platform, report)
            listed = json.loads(platform.run("tenants", "list", "--json").stdout)
            assert next(t["cell"] for t in listed if t["tenant"] == "mover") == cell
        traffic.stop()
        assert traffic.error is None, traffic.error
        assert len(set(traffic.written)) == len(traffic.written) > 0
        # A key from before both moves has had its one effect.
        assert traffic.transfer("transfer-0") == traffic.written[0]
    report = tenant.verify()
    assert report["ok"], report
    assert report["transactions"] == len(traffic.written)
    # Back within the window of the first move, the second one is its rollback: nothing was copied.
    back, there = json.loads(platform.run("moves", "list", "--json").stdout)[:2]
    assert (back["follows"], back["rows"]) == (there["move_id"], None)
    assert (there["phase"], there["rows"] > 0) == ("rolled back", True)
    refused = platform.run("moves", "rollback", there["move_id"], expected=1).stderr
    assert "move the tenant there again" in refused
    finished = platform.run("moves", "finish", back["move_id"], "--json").stdout
    assert json.loads(finished.splitlines()[-1])["phase"] == "commit"


def check_certificate(platform: Any, report: dict[str, Any]) -> None:
    shown = platform.run("moves", "show", report["move_id"], "--certificate").stdout
    file = platform.home / "certificate.json"
    file.write_text(shown)
    assert "proves the move" in platform.run("moves", "check", file).stdout
    file.write_text(shown.replace('"pause_ms":', '"pause_ms":1', 1))
    assert "checksum" in platform.run("moves", "check", file, expected=1).stderr


@pytest.mark.faults
def test_a_cell_is_evacuated(platform: Any) -> None:
    """All tenants of a cell, in the middle of it begun anew; one of them is in traffic."""
    busy = platform.create_tenant("busy")
    target = "cell-b" if busy.cell == "cell-a" else "cell-a"
    for number in range(3):
        platform.run("tenants", "create", f"quiet-{number}", "--cell", busy.cell)
    evacuate = ["evacuate", busy.cell, "--to", target, "--pause", "0", "--json"]
    patience = ["--max-pause-ms", "60000", "--rollback-window", "0"]
    with Traffic(busy) as traffic:
        # Stopped as soon as it says that something has begun, and begun again.
        first = platform.begin(*evacuate, *patience)
        assert json.loads(first.stdout.readline())["event"] == "moving"
        first.kill()
        first.communicate(timeout=60)
        for _ in range(5):
            second = platform.begin(*evacuate, *patience)
            told = [json.loads(line) for line in second.communicate(timeout=600)[0].splitlines()]
            if second.returncode == 0:
                break
            assert {line["reason"] for line in told if line["event"] == "later"} != set()
    assert second.returncode == 0
    assert told[-1]["event"] == "done"
    assert traffic.error is None, traffic.error
    listed = json.loads(platform.run("tenants", "list", "--json").stdout)
    assert {tenant["cell"] for tenant in listed} == {target}
    assert busy.verify()["ok"]


@pytest.mark.faults
def test_the_demo_shows_no_failed_request(platform: Any) -> None:
    command = ("demo", "move", "--rate", "20", "--max-pause-ms", "60000", "--json")
    for _ in range(5):
        done = subprocess.run(
            platform.command(*command),
            env=platform.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        # A machine that stands still for longer than the platform's deadlines is asked again.
        if done.returncode == 0 or "ms of the fence" not in done.stderr:
            break
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    for tenant in result["tenants"]:
        assert (tenant["failed"], tenant["verified"]) == (0, True)
        assert tenant["sent"] > 20
    assert len(result["moves"]) == 2


def test_a_dry_run_moves_nothing(platform: Any) -> None:
    tenant = platform.create_tenant("careful")
    target = "cell-b" if tenant.cell == "cell-a" else "cell-a"
    command = ("move", "careful", target, "--dry-run", "--json")
    rehearsal = json.loads(platform.run(*command, "--max-pause-ms", "60000").stdout)
    assert rehearsal["refused"] is None
    assert 0 < rehearsal["commit_ms"] < rehearsal["expected_pause_ms"]
    assert rehearsal["rows"] > 0
    refused = json.loads(platform.run(*command, "--max-pause-ms", "1", expected=1).stdout)
    assert "1 are allowed" in refused["refused"]
    listed = json.loads(platform.run("tenants", "list", "--json").stdout)
    assert next(t["cell"] for t in listed if t["tenant"] == "careful") == tenant.cell


def move(platform: Any, tenant: str, cell: str, *options: str) -> dict[str, Any]:
    """The last report. On a machine that stands still a pause can be too long: then, once more."""
    for _ in range(10):
        done = subprocess.run(
            platform.command("move", tenant, cell, "--max-pause-ms", "60000", "--json", *options),
            env=platform.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert (done.returncode == 0) == (report["decision"] == "commit"), done.stderr
        if report["decision"] == "commit":
            return report
        assert "ms of the fence" in report["reason"], report
    raise AssertionError(f"no pause was short enough: {report}")


def test_what_cannot_be_moved_is_refused(platform: Any) -> None:
    platform.create_tenant("stays")
    listed = json.loads(platform.run("tenants", "list", "--json").stdout)
    cell = next(t["cell"] for t in listed if t["tenant"] == "stays")
    for arguments, reason in (
        (("move", "stays", cell), "already"),
        (("move", "stays", "cell-z"), "no cell"),
        (("move", "nobody", "cell-a"), "no tenant"),
        (("moves", "abort", "00000000-0000-0000-0000-000000000000"), "no move"),
    ):
        assert reason in platform.run(*arguments, expected=1).stderr
