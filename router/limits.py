"""How much one tenant may ask of this router: requests per second, and requests in flight.

The rate is a token bucket; several routers divide a tenant's traffic, so each keeps the limit for
itself alone. Limits come with the routing table and change while requests are under way. What is
beyond is refused by the head alone, before a body is read into memory.

The router checks no API keys, and whoever knows an organization id can send requests in its name.
So credentials that a cell has not served yet spend from a second bucket of the same size, and the
tenant is charged once they are: who guesses keys spends nothing that those who have one need.
"""

from typing import Final

from control_plane.routing import TenantLimits
from router.errors import TooManyRequests

SERVED_MAX: Final = 256
"""Credentials remembered of a tenant; beyond, all are forgotten, and learnt again."""


class TenantTraffic:
    """One tenant's traffic through this router, and its limits."""

    __slots__ = (
        "_served",
        "_strangers",
        "_tokens",
        "burst",
        "carried",
        "in_flight",
        "in_flight_max",
        "rate",
    )

    def __init__(self, in_flight_max: int) -> None:
        self.in_flight = 0
        """Requests on their way to a cell and back; those held while the tenant moves are not."""
        self.in_flight_max = in_flight_max
        self.carried = 0
        """Of those, how many have a connection to a cell."""
        self.rate: float | None = None
        """Requests per second; None: not limited."""
        self.burst = 0.0
        """Requests that may come at once after a quiet time."""
        self._tokens = _Tokens()
        self._strangers = _Tokens()
        """Of requests with credentials not known to be served."""
        self._served: set[int] = set()
        """Hashes, so that no credentials are kept."""

    def limit(self, limits: TenantLimits, in_flight_default: int) -> None:
        """Apply limits; what was not said is as for any tenant."""
        self.in_flight_max = limits.in_flight or in_flight_default
        before, self.rate = self.rate, limits.requests_per_s
        self.burst = max(1.0, float(limits.burst or limits.requests_per_s or 1))
        for tokens in (self._tokens, self._strangers):
            tokens.left = self.burst if before is None else min(tokens.left, self.burst)

    @property
    def is_free(self) -> bool:
        """Nothing limits the next request."""
        return self.rate is None and self.in_flight < self.in_flight_max

    def refusal(self, now_s: float, authorization: bytes | None) -> TooManyRequests | None:
        """Why one more request cannot be taken; None spends it from the rate."""
        if self.in_flight >= self.in_flight_max:
            return self.full()
        if self.rate is None:
            return None
        self._tokens.fill(self.rate, self.burst, now_s)
        is_known = hash(authorization) in self._served
        if not is_known:
            self._strangers.fill(self.rate, self.burst, now_s)
        tokens = self._tokens if is_known else self._strangers
        if tokens.left < 1:
            return TooManyRequests(f"more than {self.rate:g} requests per second")
        tokens.left -= 1
        return None

    def answered(self, authorization: bytes | None, status: int) -> None:
        """Learn from a cell's answer whose the credentials are; requires a rate.

        Only a success proves them: other answers may come before a cell has looked at them.
        """
        caller = hash(authorization)
        if status == 401:
            self._served.discard(caller)
        elif 200 <= status < 300 and caller not in self._served:
            if len(self._served) >= SERVED_MAX:
                self._served.clear()
            self._served.add(caller)
            self._tokens.left -= 1

    def full(self) -> TooManyRequests:
        return TooManyRequests(f"more than {self.in_flight_max} requests in flight")


class _Tokens:
    __slots__ = ("filled_s", "left")

    def __init__(self) -> None:
        self.left = 0.0
        self.filled_s = 0.0

    def fill(self, rate: float, burst: float, now_s: float) -> None:
        passed_s = max(0.0, now_s - self.filled_s)
        self.left = min(burst, self.left + passed_s * rate)
        self.filled_s = now_s
