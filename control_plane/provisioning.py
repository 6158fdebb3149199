"""Creating tenants and their API keys: repeatable steps over the catalog and one cell.

A creation that died between any two steps is completed by repeating it with the same slug: the
catalog keeps the organization id and the cell it began with, and every later step can be repeated.
That its key is about to be shown is noted last; until then no answer counts as given, so that the
repeat gives a key even where the tenant became active.
A tenant becomes visible to routers in one database transaction, after its cell is ready for it.
"""

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from control_plane.catalog import ApiKey, Catalog, Tenant, TenantState
from control_plane.cells import CellClient
from control_plane.errors import (
    CatalogUnavailable,
    CellRefused,
    CellUnavailable,
    NotFound,
    PlacementRefused,
    RequestMalformed,
    SlugInUse,
    TenantProvisioning,
)
from control_plane.placement import Candidate, choose_cell
from control_plane.routing import CellName, Epoch
from control_plane.verify.service import nobody_has_gone

SLUG = re.compile(r"[a-z][a-z0-9-]{1,62}")
FIRST_EPOCH = Epoch(1)
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key as it is shown once and never stored."""

    tenant: Tenant
    key_id: UUID
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioning:
    """The use cases and what they need."""

    catalog: Catalog
    cells: Mapping[CellName, CellClient]
    """Every cell of the provider."""
    candidates: Callable[[], Awaitable[Sequence[Candidate]]]
    """The cells as placement sees them now."""

    async def create_tenant(
        self,
        slug: str,
        cell: str | None,
        *,
        actor: str,
        is_caller_gone: Callable[[], Awaitable[bool]] = nobody_has_gone,
    ) -> NewKey:
        """A new active tenant on the named or the least loaded cell, with its first key.

        Raises RequestMalformed, SlugInUse, PlacementRefused, NoOpenCell, CellError, CatalogError.
        """
        check_slug(slug)
        attempt = uuid4()
        tenant = await self._begin(slug, cell, attempt)
        client = self._client(tenant.home)
        if tenant.state is TenantState.PROVISIONING:
            await self._prepare_cell(tenant, client, actor=actor)
        key_id, secret = await self._put_key(tenant, client)
        completed = await self.catalog.complete_tenant(
            tenant, attempt=attempt, epoch=FIRST_EPOCH, key_id=key_id, actor=actor
        )
        if completed and not await is_caller_gone():
            # Should this note be lost, the key is shown all the same: it works, and all that a
            # repeat could do is to give another one.
            with suppress(CatalogUnavailable):
                completed = await self.catalog.answer_tenant(tenant, attempt=attempt)
        if not completed:
            await self._revoke(tenant, key_id, client, actor=actor)
            raise SlugInUse(f"tenant {slug!r} was created by another request", parameter="slug")
        return NewKey(tenant=tenant, key_id=key_id, secret=secret)

    async def _prepare_cell(self, tenant: Tenant, client: CellClient, *, actor: str) -> None:
        """Make the tenant's head, and revoke keys of earlier attempts: nobody was shown them.

        Those of an active tenant stay: one may have been shown, and only the note of it be lost.
        """
        head = await client.put_tenant(tenant.organization_id, FIRST_EPOCH)
        if (head.state, head.epoch) != ("owned", FIRST_EPOCH):
            raise CellRefused(
                f"cell {client.name} has a head of {tenant.slug!r} that is {head.state}"
                f" at epoch {head.epoch}"
            )
        for key in await self.catalog.keys(tenant.organization_id):
            if key.revoked_at is None:
                await self._revoke(tenant, key.key_id, client, actor=actor)

    async def _begin(self, slug: str, cell: str | None, attempt: UUID) -> Tenant:
        """Three cases: no such tenant (choose a cell), one whose creation was not answered (keep
        its cell), one that is complete."""
        found = await self.catalog.find_tenant(slug)
        if found is None:
            chosen = choose_cell(await self.candidates(), cell)
            found = await self.catalog.begin_tenant(
                slug, organization_id=uuid4(), cell=chosen, attempt=attempt
            )
        elif not found.is_answered:
            found = await self.catalog.begin_tenant(
                slug,
                organization_id=found.organization_id,
                cell=found.first_cell,
                attempt=attempt,
            )
        if found.is_answered:
            raise SlugInUse(f"there is a tenant {slug!r} already", parameter="slug")
        if cell is not None and cell != found.first_cell:
            raise PlacementRefused(
                f"the creation of {slug!r} began on {found.first_cell}; repeat it without a cell,"
                " or with that one",
                parameter="cell",
            )
        return found

    async def create_key(self, slug: str, *, actor: str) -> NewKey:
        """A further key of an active tenant; the others stay valid."""
        tenant = await self._active(slug)
        key_id, secret = await self._put_key(tenant, self._home(tenant))
        await self.catalog.confirm_key(tenant, key_id, actor=actor)
        return NewKey(tenant=tenant, key_id=key_id, secret=secret)

    async def revoke_key(self, slug: str, key_id: UUID, *, actor: str) -> None:
        """The cell refuses the key from then on. Repeating it is harmless."""
        tenant = await self._active(slug)
        if key_id not in {key.key_id for key in await self.catalog.keys(tenant.organization_id)}:
            raise NotFound(f"tenant {slug!r} has no key {key_id}", parameter="key_id")
        await self._revoke(tenant, key_id, self._home(tenant), actor=actor)

    async def list_keys(self, slug: str) -> list[ApiKey]:
        tenant = await self.catalog.tenant(slug)
        return await self.catalog.keys(tenant.organization_id)

    async def _put_key(self, tenant: Tenant, client: CellClient) -> tuple[UUID, str]:
        key_id = uuid4()
        secret = "ck_" + secrets.token_urlsafe(SECRET_BYTES)
        # A digest without salt or stretching is enough for 256 random bits.
        sha256 = hashlib.sha256(secret.encode()).digest()
        # Recorded first: a key that a cell knows and nobody lists could never be revoked.
        await self.catalog.add_key(tenant.organization_id, key_id, sha256)
        await client.put_key(tenant.organization_id, key_id, sha256)
        return key_id, secret

    async def _revoke(
        self, tenant: Tenant, key_id: UUID, client: CellClient, *, actor: str
    ) -> None:
        # The cell first: the catalog must not call a key revoked that still opens the door.
        await client.delete_key(tenant.organization_id, key_id)
        await self.catalog.revoke_key(tenant, key_id, actor=actor)

    async def _active(self, slug: str) -> Tenant:
        tenant = await self.catalog.tenant(slug)
        if tenant.state is not TenantState.ACTIVE:
            raise TenantProvisioning(
                f"the creation of {slug!r} was not completed; repeat it first", parameter="tenant"
            )
        return tenant

    def _home(self, tenant: Tenant) -> CellClient:
        assert tenant.cell is not None, "an active tenant is placed"
        return self._client(tenant.cell)

    def _client(self, cell: CellName) -> CellClient:
        client = self.cells.get(cell)
        if client is None:
            raise CellUnavailable(f"cell {cell} is not among the cells that run now")
        return client


def check_slug(slug: str) -> None:
    """Raises RequestMalformed unless the text can name a tenant."""
    if not SLUG.fullmatch(slug):
        raise RequestMalformed(
            f"{slug[:80]!r} cannot name a tenant; use 2 to 63 lower-case letters, digits and -,"
            " beginning with a letter",
            parameter="slug",
        )
