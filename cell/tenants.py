"""The tenants of this cell and their API keys: who is calling, and may they read here?

Keys are known by the SHA-256 of their secret only. What is known of a tenant is read from the
database in the tenant's own scope, kept in bounded memory, read again in the background when it is
old, and at once (though at most once a second) when a key does not fit: another process may have
made it. Keys made and revoked through this cell take effect at once: see `forget`.
"""

import asyncio
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cell.errors import NotApplied, Unauthenticated
from cell.ledger.model import TenantId
from cell.reads import Reader
from cell.wellformed import as_uuid
from cell.wire import Verdict

TENANTS_MAX: Final = 20_000
READ_AHEAD_MAX: Final = 16
"""Tenants at once whose heads have changed; more are asked for by their requests."""

REREAD_S_MIN: Final = 1.0
"""A key that does not fit has the tenant read again at most so often."""

FRESH_S_MAX: Final = 10.0
"""What is older is read again, in the background: the caller does not wait for it."""

REFUSAL: Final = "the organization id or the API key is not valid"
"""The same words whatever is wrong, so that nobody learns which tenants exist."""

_SCHEME: Final = b"basic "
_SECRET_BYTES_MAX: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a tenant stands in this cell, as last read."""

    state: str
    epoch: int
    moved_to: str | None

    def refusal(self) -> NotApplied | None:
        """Why this cell must not answer the tenant's reads; None where it may.

        A fenced tenant is readable: nobody else writes it before the fence is lifted or decided.
        """
        if self.state in ("owned", "fenced"):
            return None
        if self.state == "moved":
            message = "the tenant has moved to another cell"
            return NotApplied(Verdict.MOVED, message, self.epoch, self.moved_to)
        if self.state == "quarantined":
            message = "the tenant's cell was restored from a backup"
            return NotApplied(Verdict.QUARANTINED, message, self.epoch)
        return NotApplied(Verdict.NOT_OWNER, "this cell does not own the tenant", self.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is calling."""

    tenant_id: TenantId
    api_key_id: str
    standing: Standing

    def require_readable(self) -> None:
        """Raise NotApplied unless this cell holds the tenant's current state."""
        refusal = self.standing.refusal()
        if refusal is not None:
            raise refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tenant:
    read_at_s: float
    standing: Standing | None = None
    """None: this cell has no such tenant."""
    keys: dict[bytes, tuple[bytes, Principal]] = field(default_factory=dict)
    """By SHA-256 of the secret: the same once more, to compare, and whose it is."""

    def refusal(self) -> NotApplied | None:
        """Where the tenant is not owned, its keys may be not there yet, or deleted already."""
        return None if self.standing is None else self.standing.refusal()


_READ_TENANT: Final = """
SELECT h.state, h.epoch, h.moved_to, k.id, k.secret_sha256
FROM tenant_heads h
LEFT JOIN api_keys k ON k.tenant_id = h.tenant_id AND k.revoked_at_us IS NULL
WHERE h.tenant_id = %s
"""


class Directory:
    """Authenticates callers."""

    def __init__(self, reader: Reader, now_s: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._now_s = now_s
        self._tenants: dict[TenantId, _Tenant] = {}
        """In the order in which they were read, so that the first is the one to let go."""
        self._reading: dict[TenantId, asyncio.Task[_Tenant]] = {}

    async def authenticate(self, authorization: bytes | None) -> Principal:
        """Who sends this `Authorization` header; raises Unauthenticated."""
        tenant_id, secret = _parse(authorization)
        digest = hashlib.sha256(secret).digest()
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = await self._read(tenant_id)
        principal = _match(tenant, digest)
        age_s = self._now_s() - tenant.read_at_s
        if principal is None and age_s >= REREAD_S_MIN:
            tenant = await self._read(tenant_id)
            principal = _match(tenant, digest)
        elif age_s >= FRESH_S_MAX:
            self._start_reading(tenant_id)
        if principal is None:
            raise tenant.refusal() or Unauthenticated(REFUSAL)
        return principal

    def forget(self, tenant_id: TenantId | None) -> None:
        """The tenant's head or keys have changed (None: anybody's): ask at the next request."""
        if tenant_id is None:
            self._tenants.clear()
            self._reading.clear()
            return
        self._tenants.pop(tenant_id, None)
        # A read under way may have seen the time before the change: it must not be kept.
        self._reading.pop(tenant_id, None)

    def look_at(self, tenant_id: TenantId) -> None:
        """As `forget`, and ask at once: its requests are about to come, all together."""
        self.forget(tenant_id)
        if len(self._reading) < READ_AHEAD_MAX:
            self._start_reading(tenant_id)

    async def _read(self, tenant_id: TenantId) -> _Tenant:
        # Shielded: others wait for the same read when this caller goes away.
        return await asyncio.shield(self._start_reading(tenant_id))

    def _start_reading(self, tenant_id: TenantId) -> "asyncio.Task[_Tenant]":
        reading = self._reading.get(tenant_id)
        if reading is None:
            reading = asyncio.create_task(self._fetch(tenant_id), name="read tenant")
            self._reading[tenant_id] = reading
            reading.add_done_callback(lambda task: self._keep(tenant_id, task))
        return reading

    def _keep(self, tenant_id: TenantId, task: "asyncio.Task[_Tenant]") -> None:
        is_current = self._reading.get(tenant_id) is task
        if is_current:
            del self._reading[tenant_id]
        # Whoever waits for the task gets its error; what is known already stays known.
        if task.cancelled() or task.exception() is not None or not is_current:
            return
        self._tenants.pop(tenant_id, None)
        self._tenants[tenant_id] = task.result()
        if len(self._tenants) > TENANTS_MAX:
            del self._tenants[next(iter(self._tenants))]

    async def _fetch(self, tenant_id: TenantId) -> _Tenant:
        read_at_s = self._now_s()
        rows = await self._reader.fetch(tenant_id, _READ_TENANT, (tenant_id,))
        if not rows:
            return _Tenant(read_at_s=read_at_s)
        state, epoch, moved_to = rows[0][:3]
        standing = Standing(state=state, epoch=epoch, moved_to=moved_to)
        keys: dict[bytes, tuple[bytes, Principal]] = {}
        for *_, key_id, sha256 in rows:
            if key_id is not None:
                digest = bytes.fromhex(sha256)
                principal = Principal(tenant_id=tenant_id, api_key_id=key_id, standing=standing)
                keys[digest] = (digest, principal)
        return _Tenant(read_at_s=read_at_s, standing=standing, keys=keys)


def _parse(authorization: bytes | None) -> tuple[TenantId, bytes]:
    """Organization id and secret of a Basic header."""
    if authorization is not None and authorization[:6].lower() == _SCHEME:
        try:
            pair = binascii.a2b_base64(authorization[6:].strip(), strict_mode=True)
        except binascii.Error:
            pair = b""
        organization_id, _, secret = pair.partition(b":")
        tenant_id = as_uuid(organization_id.decode("latin-1"))
        if tenant_id is not None and 0 < len(secret) <= _SECRET_BYTES_MAX:
            return TenantId(tenant_id), secret
    raise Unauthenticated(REFUSAL)


def _match(tenant: _Tenant, digest: bytes) -> Principal | None:
    # The look-up's time depends on a hash of the secret, which tells nothing about the secret.
    found = tenant.keys.get(digest)
    if found is not None and hmac.compare_digest(found[0], digest):
        return found[1]
    return None
