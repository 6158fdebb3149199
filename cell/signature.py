"""A router's signature on what it sends to a cell, and the cell's check of it.

The platform's routers share a secret; each cell has a key that is derived from it by the cell's
name, so that no cell can pass for a router at another one. Signed is the head that says what is
asked, for whom, and when: not the body, and nothing is hidden. Whoever can read or change what
passes between a router and a cell has to be kept out by the network.

A signature is good once. A sender counts what it signs; its requests overtake each other, so the
last WINDOW counts are remembered one by one, and whatever is older, or off the cell's clock by more
than SKEW_S, is refused. A cell that was just started has no memory: it refuses what was signed more
than START_SKEW_S before.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cell.errors import NotApplied, NotFromRouter
from cell.wire import EPOCH_HEADER, REQUEST_ID_HEADER, TENANT_HEADER, Verdict

SIGNATURE_HEADER: Final = "cloister-signature"
SIGNED_HEADERS: Final = (
    TENANT_HEADER.encode(),
    EPOCH_HEADER.encode(),
    REQUEST_ID_HEADER.encode(),
    b"authorization",
    b"idempotency-key",
)
"""Behind method, path and query; in this order, empty where there is none."""
SKEW_S: Final = 30.0
START_SKEW_S: Final = 5.0
WINDOW: Final = 8192
SENDERS_SWEPT: Final = 256
"""With so many senders known, those not heard of for long are forgotten."""

_MASK: Final = (1 << WINDOW) - 1
_KEY_BYTES: Final = 32


def key_of_cell(secret: str, cell: str) -> str:
    """What a cell checks signatures by, in hex; routers make it from the secret they share."""
    shared = hashlib.sha256(secret.encode()).digest()
    return hashlib.blake2b(cell.encode(), key=shared, digest_size=_KEY_BYTES).hexdigest()


class Signer:
    """Signs for one cell."""

    def __init__(self, key: str, now_s: Callable[[], float] = time.time) -> None:
        self._keyed = hashlib.blake2b(key=bytes.fromhex(key), digest_size=16)
        self._sender = os.urandom(8).hex().encode()
        self._count = 0
        self._now_s = now_s

    def sign(self, *head: bytes) -> bytes:
        """The value of SIGNATURE_HEADER; no part of the head may hold a line end."""
        self._count += 1
        place = b"%b-%x-%x" % (self._sender, self._count, int(self._now_s() * 1000))
        return b"%b-%b" % (place, _mac(self._keyed, place, head))


def _mac(keyed: "hashlib.blake2b", place: bytes, head: tuple[bytes, ...]) -> bytes:
    mac = keyed.copy()
    mac.update(b"\n".join((place, *head)))
    return mac.hexdigest().encode()


@dataclass(slots=True)
class _Sender:
    """What was taken of one sender: the highest count, and which of the WINDOW up to it."""

    highest: int = 0
    taken: int = 0
    heard_s: float = 0.0

    def take(self, count: int) -> bool:
        """False: it was taken before, or is too old to tell."""
        ahead = count - self.highest
        if ahead > 0:
            # A leap beyond the window leaves nothing of it; shifting by all of it could be costly.
            self.taken = (self.taken << ahead) & _MASK if ahead < WINDOW else 0
            self.highest = count
        bit = 1 << (self.highest - count)
        if bit > _MASK or self.taken & bit:
            return False
        self.taken |= bit
        return True


class Verifier:
    """Checks what was signed for this cell."""

    def __init__(self, key: str, now_s: Callable[[], float] = time.time) -> None:
        """Raises ValueError where the key is not the hex of 32 bytes."""
        raw = bytes.fromhex(key)
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"a key of {_KEY_BYTES} bytes is needed")
        self._keyed = hashlib.blake2b(key=raw, digest_size=16)
        self._now_s = now_s
        self._began_s = now_s()
        self._senders: dict[bytes, _Sender] = {}

    def check(self, signature: bytes | None, *head: bytes) -> None:
        """Raises NotFromRouter, NotApplied where only the time is wrong."""
        if signature is None:
            raise NotFromRouter("this address takes requests from the platform's routers only")
        place, _, mac = signature.rpartition(b"-")
        if not hmac.compare_digest(mac, _mac(self._keyed, place, head)):
            raise NotFromRouter("the router's signature is not right")
        sender_id, count, sent_ms = place.split(b"-")
        now_s, sent_s = self._now_s(), int(sent_ms, 16) / 1000
        # A clock that was set back has this process begin no later than now.
        self._began_s = min(self._began_s, now_s)
        if abs(now_s - sent_s) > SKEW_S or sent_s < self._began_s - START_SKEW_S:
            # Signed by a router all the same: no fault of the client, and over before long.
            raise NotApplied(Verdict.OVERLOADED, "the clocks of the router and the cell differ")
        sender = self._senders.get(sender_id)
        if sender is None:
            sender = self._meet(sender_id, now_s)
        sender.heard_s = now_s
        if not sender.take(int(count, 16)):
            raise NotFromRouter("the router's signature was used before")

    def _meet(self, sender_id: bytes, now_s: float) -> _Sender:
        if len(self._senders) >= SENDERS_SWEPT:
            # Whatever these signed is refused for its time by now.
            known = self._senders.items()
            self._senders = {id: each for id, each in known if now_s - each.heard_s <= 2 * SKEW_S}
        sender = self._senders[sender_id] = _Sender()
        return sender
