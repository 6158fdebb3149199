"""The router's settings: read once from the environment into one frozen object.

Every variable is `CLOISTER_ROUTER_` and the field's name in capitals. A missing or impossible value
stops the process with the variable's name.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from cell.wire import KEEP_ALIVE_CELL_S
from router.errors import SettingsError

PREFIX: Final = "CLOISTER_ROUTER_"


class Address(NamedTuple):
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `host:port` or `[v6]:port`; raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not host:port")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


LISTEN: Final = Address("127.0.0.1", 8080)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    operator_listen: Address
    """Where /healthz and /metrics answer, and what `cloister explain` asks; loopback or a private
    network."""
    token: str = field(repr=False)
    """Bearer token of routers at the control plane, and of the control plane here."""
    table_file: Path
    """The disk copy of the routing table; `<name>.previous` beside it is the copy before."""
    listen: Address = LISTEN
    """Where tenants' requests arrive."""
    shares_port: bool = False
    """`true`: other router processes may listen at the same address, each with a table file and an
    operator address of its own; the kernel spreads new connections over them."""
    signing_secret: str | None = field(default=None, repr=False)
    """The platform's routers share it; what cells get is signed by keys derived from it."""
    tls_certificate: Path | None = None
    """PEM of the certificate and its chain; with it, clients are served by TLS only. Both files are
    read anew when they change."""
    tls_key: Path | None = None
    """PEM of its private key, without a passphrase."""
    control_url: str = "http://127.0.0.1:8081"

    body_bytes_max: int = 25 * 1024 * 1024
    """Of one request; more is 413. The API promises 25 MB."""
    buffered_bytes_max: int = 256 * 1024 * 1024
    """Of all request bodies held at once; more is 503."""
    connections_max: int = 4096
    """Of clients; one more is answered 503 and closed."""
    header_ms_max: int = 5_000
    """From a request's first byte to the end of its header section; then 408."""
    body_ms_max: int = 10_000
    """From a request's first byte to the end of its body; anew each time that 32 KiB for each of
    its seconds have come; then 408."""
    request_ms_max: int = 15_000
    """From the whole request to the head of its answer, resends included; then 504."""
    answer_ms_max: int = 60_000
    """From the head of a streamed answer to its end; then the connection is cut."""
    idle_ms_max: int = 75_000
    """A client's connection without a request."""
    drain_ms_max: int = 10_000
    """After SIGTERM: how long requests in flight may take to finish."""

    cell_sockets: Path | None = None
    """A directory with Unix sockets of cells on this machine, `<cell>.sock` each. A cell that
    listens there is reached by it, any other by its address in the table."""
    cell_connections_max: int = 96
    """Per cell; each carries one request at a time, so this bounds what a cell has in flight. A
    tenant may have twice as many as are left: 64 if it is the only one (`waiting`)."""
    cell_waiters_max: int = 256
    """Requests per cell waiting for a connection; one more is 503."""
    cell_wait_ms_max: int = 1_000
    """How long a request waits for a connection; then 503."""
    cell_connect_ms_max: int = 1_000
    """To open a connection to a cell."""
    cell_idle_ms_max: int = 30_000
    """An unused connection to a cell; less than the time after which a cell closes it (75 s)."""

    tenant_in_flight_max: int = 256
    """Requests of one tenant on their way to a cell and back, unless the routing table has another
    limit for it; one more is 429. Below connections and waiters of a cell together, so that one
    tenant cannot take all the places; held requests are not among them."""

    hold_ms_max: int = 5_000
    """How long a request is held while its tenant moves, in all; then 503. A move pauses writes for
    150 ms; one whose mover died is finished or undone by others within a few seconds."""
    hold_tenant_max: int = 512
    """Requests of one tenant held at a time; one more is 503. 300 writes/s fill it in 1.7 s."""
    hold_max: int = 2_048
    """Requests held at a time, of all tenants; one more is 503."""
    hold_bytes_max: int = 64 * 1024 * 1024
    """Of the bodies of all held requests, part of `buffered_bytes_max`; more is 503."""

    access_log_one_in: int = 0
    """One of so many requests, evenly random, is written to the log when it is answered; unset:
    none. 1 logs every request."""

    otlp_url: str | None = None
    """Where a span of each request is sent by OTLP over HTTP, such as
    `http://127.0.0.1:4318/v1/traces`; needs the extra `opentelemetry`. Unset: none is made."""

    recent_requests_max: int = 10_000
    """Requests answered last of which an operator can ask why they went where they went; at most
    some 800 bytes each."""

    poll_wait_ms: int = 20_000
    """How long the control plane may hold a poll for a newer table."""
    repointed_percent_max: int = 25
    """A table that re-points or drops more of the tenants known than this is refused, unless they
    leave a cell that the table says is being evacuated. 100 switches the check off."""
    fresh_ms_max: int = 30_000
    """The table counts as fresh while the last poll worked and is no older than this."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises SettingsError, which names the variable."""
        values: dict[str, Any] = {f.name: _value(f, environment) for f in fields(cls)}
        settings = cls(**values)
        if not settings.control_url.startswith(("http://", "https://")):
            raise SettingsError(f"{PREFIX}CONTROL_URL: {settings.control_url!r} is no http URL")
        if (settings.tls_certificate is None) is not (settings.tls_key is None):
            raise SettingsError(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY belong together")
        if settings.cell_idle_ms_max >= KEEP_ALIVE_CELL_S * 1000:
            # Or both sides could let go at once, and a request be sent into the end.
            raise SettingsError(
                f"{PREFIX}CELL_IDLE_MS_MAX: {settings.cell_idle_ms_max} is not below the"
                f" {KEEP_ALIVE_CELL_S * 1000} after which a cell closes the connection"
            )
        return settings


def _value(setting: Field[Any], environment: Mapping[str, str]) -> object:
    name = PREFIX + setting.name.upper()
    text = environment.get(name, "").strip()
    if not text:
        if setting.default is MISSING:
            raise SettingsError(f"{name} is not set")
        return setting.default
    try:
        return _PARSERS[setting.type](text)
    except ValueError as exc:
        raise SettingsError(f"{name}: {exc}") from exc


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a positive whole number")
    return int(text)


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


_PARSERS: Final[dict[object, Any]] = {
    Address: Address.parse,
    str: str,
    str | None: str,
    Path: Path,
    Path | None: Path,
    int: _positive,
    bool: _true_or_false,
}
