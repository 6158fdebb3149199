"""What can strike a platform in the middle of a move, and the clients who must not notice a loss.

A fault is a fail point of the mover, a victim and a blow: the mover comes to the point and waits
there (or is the victim itself) while real signals hit real processes. Seeds go through all of them,
from point to point: twenty in a row strike at every point, three hundred do all there is.
"""

import random
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from processes import Processes, send

POINTS = (
    "before pin",
    "before prepare",
    "after prepare",
    "while copying",
    "before compare",
    "before gate",
    "before fence",
    "after fence",
    "before drain",
    "before seal",
    "after seal",
    "before decide",
    "after decide",
    "before activate",
    "after activate",
    "before tombstone",
    "after tombstone",
    "before retire",
    "before release",
    "before finish",
)
ALWAYS_PASSED = frozenset(POINTS) - {"before drain"}
"""By a move that ends well; there may be nothing to drain."""
VICTIMS = ("mover", "source", "target", "source postgres", "target postgres", "catalog", "router")
STOPPED_MS = (100, 600, 2_000)
MOVER_STOPPED_MS = (600, 12_000)
"""The second is longer than a lease: another one goes on, and the first wakes up as a zombie."""
GIVEN_UP = 0.05
"""The share of refused attempts after which a client does not try again."""
STRIKE_MS = 300
"""How long the mover waits at the point for the blow to another victim to land."""


@dataclass(frozen=True)
class Fault:
    point: str
    victim: str
    blow: str
    stopped_ms: int

    @classmethod
    def drawn(cls, seed: int) -> "Fault":
        point = POINTS[seed % len(POINTS)]
        strikes = [(victim, blow) for victim in VICTIMS for blow in blows_to(victim)]
        random.Random(point).shuffle(strikes)
        victim, blow = strikes[seed // len(POINTS) % len(strikes)]
        stopped_ms = MOVER_STOPPED_MS if victim == "mover" else STOPPED_MS
        return cls(point, victim, blow, random.Random(seed).choice(stopped_ms))

    def __str__(self) -> str:
        blow = f"{self.blow} {self.stopped_ms} ms" if self.blow == "stop" else self.blow
        return f"{self.point}: {blow} {self.victim}"

    def arm(self, points: Path) -> None:
        """Have the next mover at the point come to harm; whatever was armed before is not."""
        disarm(points)
        action = self.blow if self.victim == "mover" else f"wait {STRIKE_MS}"
        unseen = points / "being armed"
        unseen.write_text(action)
        unseen.rename(points / self.point)

    def is_reached(self, points: Path) -> bool:
        return (points / f"{self.point}.reached").exists()


def blows_to(victim: str) -> tuple[str, ...]:
    return ("kill", "stop", "fail") if victim == "mover" else ("kill", "stop")


def disarm(points: Path) -> None:
    for file in points.iterdir():
        file.unlink()


def strike(fault: Fault, processes: Processes, source: str, target: str) -> None:
    """Deliver the blow; who was stopped goes on afterwards."""
    pids = list(processes.of(fault.victim.replace("source", source).replace("target", target)))
    if fault.blow == "stop":
        if fault.victim != "mover":
            send(pids, signal.SIGSTOP)
        # The length of the fault: nothing is waited for.
        time.sleep(fault.stopped_ms / 1000)
        send(pids, signal.SIGCONT)
    elif fault.blow == "kill" and fault.victim != "mover":
        send(pids, signal.SIGKILL)


class Client:
    """Sends one write after another, each until it is told that it is done."""

    def __init__(self, name: str, tenant: Any, accounts: list[str]) -> None:
        self.acknowledged: dict[str, set[str]] = {}
        """Of each key, the ids of the transactions it was told of."""
        self.refused: set[str] = set()
        """Said to be not applied, and given up."""
        self.attempts = self.failures = 0
        self.longest_gap_s = 0.0
        """Between two writes acknowledged one after the other."""
        self.error: BaseException | None = None
        self._tenant, self._name = tenant, name
        self._body = {
            "status": "posted",
            "ledger_entries": [
                {"ledger_account_id": account, "direction": direction, "amount": 1}
                for account, direction in zip(accounts, ("debit", "credit"), strict=True)
            ],
        }
        self._chance = random.Random(name)
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._is_over.clear()
        self._thread = threading.Thread(target=self._run, name=self._name)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the last write is settled, one way or the other."""
        self._is_over.set()
        assert self._thread is not None
        self._thread.join(300)
        assert not self._thread.is_alive(), f"{self._name} waits for an answer"
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with httpx.Client(
                base_url=self._tenant.platform.ready["router"],
                auth=(self._tenant.organization_id, self._tenant.api_key),
                trust_env=False,
                timeout=30,
            ) as http:
                last_s = time.monotonic()
                while not self._is_over.is_set():
                    if self._write(http, f"{self._name} {len(self.acknowledged)}"):
                        now_s = time.monotonic()
                        self.longest_gap_s = max(self.longest_gap_s, now_s - last_s)
                        last_s = now_s
        except BaseException as error:
            self.error = error

    def _write(self, http: httpx.Client, key: str) -> bool:
        """False where it was given up: only what was refused for certain ever is.

        A refusal is about one attempt: with another's answer lost, it says nothing of the write.
        """
        is_unknown = False
        while True:
            self.attempts += 1
            try:
                answer = http.post(
                    "/api/ledger_transactions", json=self._body, headers={"idempotency-key": key}
                )
            except httpx.TransportError:
                self.failures += 1
                is_unknown = True
                continue
            if answer.is_success:
                self.acknowledged.setdefault(key, set()).add(answer.json()["id"])
                return True
            self.failures += 1
            assert answer.status_code in (409, 421, 429, 502, 503, 504), answer.text
            is_refused = answer.status_code in (421, 429, 503)
            is_unknown |= not is_refused or answer.json()["errors"]["code"] == "conflict"
            if not is_unknown and self._chance.random() < GIVEN_UP:
                self.acknowledged.setdefault(key, set())
                self.refused.add(key)
                return False
