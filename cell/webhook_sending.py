"""Sending one webhook: the body, its signature, whom it may reach, and what went wrong.

A tenant names the address, and must not lead the cell into its own network: unless the settings
allow it, names are resolved here, every address must be a public one, and the connection is made to
the very address that was judged. Redirects are not followed. Keys are derived, not stored.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx

from cell.errors import Unprocessable
from cell.event_reading import FoundEvent
from cell.ledger.model import TenantId
from cell.postgres import one_line

SEND_S_MAX: Final = 5.0
"""From the look-up of the name to the head of the answer."""

URL_LENGTH_MAX: Final = 2000
RESOLVERS_MAX: Final = 4
"""Threads that look names up: slow name servers must not take those of others."""

_PORTS: Final = {"http": 80, "https": 443}
_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")
"""Addresses of IPv4 behind a translator, which may be anybody's."""


# It would log each URL, which may hold the receiver's secrets.
logging.getLogger("httpx").setLevel(logging.WARNING)


class TargetRefused(Exception):
    """The address is not one that this cell sends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicy:
    """The cell's settings of webhooks."""

    secret: str | None = field(repr=False)
    """Every endpoint's key is derived from it; the same in all cells of a platform."""
    private_targets: bool
    """May webhooks go to loopback, link-local and private addresses?"""
    attempts_max: int
    retry_s: float
    """Pause after the first failure; doubled with each one."""


def signing_key(secret: str, tenant_id: TenantId, endpoint_id: str) -> str:
    """The key that an endpoint's webhooks are signed with."""
    name = f"webhook endpoint {tenant_id} {endpoint_id}"
    return "whsec_" + hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()


def parse_target(url: str) -> SplitResult:
    """The parts of a webhook's URL; raises Unprocessable where it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise Unprocessable(f"url: {exc}", "url") from exc
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not is_plain or len(url) > URL_LENGTH_MAX or "\\" in url:
        raise Unprocessable(f"url has at most {URL_LENGTH_MAX} printable ASCII characters", "url")
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise Unprocessable("url begins with http:// or https:// and a host", "url")
    if "@" in parts.netloc or parts.fragment:
        raise Unprocessable("url holds no credentials and no fragment", "url")
    _require_host_name(parts.hostname)
    return parts


def _require_host_name(host: str) -> None:
    """What the look-up of a name, which begins like this, raises instead of failing to find it."""
    try:
        host.encode("idna")
    except UnicodeError as exc:
        raise Unprocessable(
            "url: between the dots of a host name are 1 to 63 characters", "url"
        ) from exc


def require_public_literal(parts: SplitResult) -> None:
    """Raise Unprocessable where the host is an address that would be refused."""
    assert parts.hostname is not None
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    if not is_public(str(address)):
        raise Unprocessable(f"url: {address} is not a public address", "url")


def is_public(text: str) -> bool:
    """Is the address of the open internet, and not one that stands for another?"""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address.sixtofour is not None or address.teredo is not None or address in _TRANSLATED:
            return False
    return address.is_global and not address.is_multicast


class WebhookSender:
    """Sends webhooks; one HTTP client, no connection kept."""

    def __init__(self, policy: WebhookPolicy, render_body: Callable[[FoundEvent], bytes]) -> None:
        self.policy = policy
        self._render_body = render_body
        # A kept connection was checked for one name and might be used for another one's.
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=SEND_S_MAX,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )
        self._resolvers = ThreadPoolExecutor(RESOLVERS_MAX, "resolve webhook")

    async def close(self) -> None:
        await self._client.aclose()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def send(
        self, tenant_id: TenantId, endpoint_id: str, url: str, found: FoundEvent
    ) -> str | None:
        """Send one event; None if it was taken (any 2xx), else one line saying why not."""
        if self.policy.secret is None:
            return "this cell has no webhook secret"
        body = self._render_body(found)
        key = signing_key(self.policy.secret, tenant_id, endpoint_id)
        headers = {
            "content-type": "application/json",
            "user-agent": "Cloister",
            "x-signature": hmac.new(key.encode(), body, hashlib.sha256).hexdigest(),
            "x-webhook-id": found.id,
        }
        try:
            async with asyncio.timeout(SEND_S_MAX):
                status = await self._post(url, headers, body)
        except TimeoutError:
            return f"no answer within {SEND_S_MAX:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, Unprocessable, TargetRefused, OSError) as exc:
            return one_line(exc)[:200]
        return None if 200 <= status < 300 else f"answered {status}"

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        parts = parse_target(url)
        assert parts.hostname is not None
        port = parts.port or _PORTS[parts.scheme]
        address = await self._judged_address(parts.hostname, port)
        host = f"[{address}]" if ":" in address else address
        target = parts._replace(netloc=f"{host}:{port}").geturl()
        async with self._client.stream(
            "POST",
            target,
            content=body,
            headers={**headers, "host": parts.netloc},
            # Certificates are those of the name, although the connection is to the address.
            extensions={"sni_hostname": parts.hostname},
        ) as response:
            # What it says beyond its status is nobody's business, and may have no end.
            return response.status_code

    async def _judged_address(self, host: str, port: int) -> str:
        """An address of the host; raises TargetRefused if any of its addresses is not public."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
        if not self.policy.private_targets and not all(map(is_public, addresses)):
            raise TargetRefused(f"{host} is not at a public address")
        return addresses[0]
