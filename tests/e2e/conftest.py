"""One platform of real processes for the end-to-end tests, and the command as one user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from modern_treasury import ModernTreasury

# How the modules beside these tests, beside the cell's and the control plane's are found.
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "cell"))
sys.path.append(str(Path(__file__).parents[1] / "control_plane"))

from processes import Processes, send

pytest.register_assert_rewrite(
    "test_scenarios",
    "test_transaction_scenarios",
    "test_bulk_scenarios",
    "test_time_scenarios",
    "test_sdk_scenarios",
    "test_cut_scenarios",
    "test_guide_scenarios",
    "test_tutorial_scenarios",
)

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300.0


class Platform:
    """A platform in a directory of its own, started by `cloister up`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLOISTER_", "PG"))}
        self.fail_points = home / "fail-points"
        self.fail_points.mkdir()
        """Where a test arms what its movers meet."""
        self.environ = kept | {
            "CLOISTER_CONTROL_FAIL_POINTS": str(self.fail_points),
            # Receivers of webhooks are on this machine.
            "CLOISTER_CELL_WEBHOOK_PRIVATE_TARGETS": "true",
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "COLUMNS": "200",
        }
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        self.ready = json.loads(
            self.run(
                *("up", "--data", str(self.home / "data"), "--detach", "--json"),
                *("--router-port", "0", "--control-port", "0"),
            ).stdout
        )
        self.environ["CLOISTER_CONTROL_URL"] = self.ready["control_plane"]

    def stop(self) -> None:
        self.run("down", "--data", str(self.home / "data"))

    def run(
        self, *arguments: str | Path, expected: int = 0, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; its exit code must be as expected."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environ | environ,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == expected, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    def begin(self, *arguments: str | Path, **environ: str) -> "subprocess.Popen[str]":
        """Start a command; the caller ends it."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environ | environ,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "infra.cli", *map(str, arguments)]

    def create_tenant(self, slug: str) -> "Tenant":
        created = json.loads(self.run("tenants", "create", slug, "--json").stdout)
        return Tenant(self, created)

    def kill_cell(self, cell: str) -> None:
        """Kill the cell's process at once; the supervisor starts another."""
        pids = list(Processes(self.home / "data").of(cell))
        assert pids, f"no process of {cell}"
        send(pids, signal.SIGKILL)

    def auditor_dsn(self, cell: str) -> str:
        """Of the cell's database."""
        content = (self.home / "data" / "secrets" / "cells.json").read_bytes()
        return str(
            next(c["auditor_dsn"] for c in json.loads(content)["cells"] if c["name"] == cell)
        )


class Tenant:
    """A tenant with its key, and the commands that concern it."""

    def __init__(self, platform: Platform, created: dict[str, Any]) -> None:
        self.platform = platform
        self.slug = str(created["tenant"])
        self.organization_id = str(created["organization_id"])
        self.api_key = str(created["api_key"])
        self.cell = str(created["cell"])

    def client(self) -> ModernTreasury:
        """The official SDK, in strict mode."""
        return ModernTreasury(
            organization_id=self.organization_id,
            api_key=self.api_key,
            base_url=self.platform.ready["router"],
            http_client=httpx.Client(trust_env=False, verify=False, timeout=60),
            _strict_response_validation=True,
        )

    def load_arguments(self, mapping: Path, file: Path, *more: str) -> list[str]:
        """Of a load that prints its summary as JSON."""
        given = ["--tenant", self.slug, "--mapping", str(mapping), "--json", *more]
        return ["load", *given, str(file)]

    def load(self, mapping: Path, file: Path, *more: str, expected: int = 0) -> dict[str, Any]:
        """The summary of a whole load."""
        done = self.platform.run(
            *self.load_arguments(mapping, file, *more),
            expected=expected,
            CLOISTER_API_KEY=self.api_key,
        )
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def loaded_lines(self, dataset: str) -> int:
        """How far the load says it has come."""
        state = self.platform.home / "state" / "cloister" / "load"
        return sum(
            json.loads(path.read_bytes())["lines"] for path in state.glob(f"{dataset}-*.json")
        )

    def interrupt_load(
        self, mapping: Path, file: Path, dataset: str, lines: int, number: int
    ) -> tuple[int, str, str]:
        """Send a load the signal once it has come that much further; exit code, stdout, stderr."""
        before = self.loaded_lines(dataset)
        process = self.platform.begin(
            *self.load_arguments(mapping, file), CLOISTER_API_KEY=self.api_key
        )
        try:
            until(lambda: self.loaded_lines(dataset) >= before + lines, "the load goes on")
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        return process.returncode, stdout, stderr

    def verify(self, expected: int = 0) -> dict[str, Any]:
        done = self.platform.run("verify", self.slug, "--json", expected=expected)
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The built-in topology of two cells, with nothing in it but the demo tenant."""
    started = Platform(tmp_path_factory.mktemp("platform"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
