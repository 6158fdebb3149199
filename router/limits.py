"""How much one tenant may ask of this router: requests per second, and requests in flight.

The rate is a token bucket; several routers divide a tenant's traffic, so each keeps the limit for
itself alone. Limits come with the routing table and change while requests are under way. What is
beyond is refused by the head alone, before a body is read into memory.
"""

from control_plane.routing import TenantLimits
from router.errors import TooManyRequests


class TenantTraffic:
    """One tenant's traffic through this router, and its limits."""

    __slots__ = ("_filled_s", "_tokens", "burst", "carried", "in_flight", "in_flight_max", "rate")

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
        self._tokens = 0.0
        self._filled_s = 0.0

    def limit(self, limits: TenantLimits, in_flight_default: int) -> None:
        """Apply limits; what was not said is as for any tenant."""
        self.in_flight_max = limits.in_flight or in_flight_default
        before, self.rate = self.rate, limits.requests_per_s
        self.burst = max(1.0, float(limits.burst or limits.requests_per_s or 1))
        self._tokens = self.burst if before is None else min(self._tokens, self.burst)

    @property
    def is_free(self) -> bool:
        """Nothing limits the next request."""
        return self.rate is None and self.in_flight < self.in_flight_max

    def refusal(self, now_s: float) -> TooManyRequests | None:
        """Why one more request cannot be taken; None spends it from the rate."""
        if self.in_flight >= self.in_flight_max:
            return self.full()
        if self.rate is None:
            return None
        passed_s = max(0.0, now_s - self._filled_s)
        self._tokens = min(self.burst, self._tokens + passed_s * self.rate)
        self._filled_s = now_s
        if self._tokens < 1:
            return TooManyRequests(f"more than {self.rate:g} requests per second")
        self._tokens -= 1
        return None

    def full(self) -> TooManyRequests:
        return TooManyRequests(f"more than {self.in_flight_max} requests in flight")
