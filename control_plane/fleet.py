"""All cells of the provider and its router, as they are observed and reconciled together.

Starts the loops of `reconcile.py`, and answers from what they last saw: candidates for placement,
the status report. Holds no state of its own beyond that.
"""

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from control_plane.catalog import Catalog, CellRecord
from control_plane.cells import OBSERVATION_S_MAX, CellClient
from control_plane.observation import NEVER_OBSERVED, CellObservation
from control_plane.placement import Candidate
from control_plane.reconcile import OBSERVE_S, CellReconciler, Pass, repeat
from control_plane.routing import CellName
from control_plane.settings import CellsFile
from control_plane.topology_specs import CellSpec, Topology
from control_plane.wire import CellReport, RouterReport, StatusReport


class RouterHealth(msgspec.Struct, frozen=True):
    """What the router's /healthz says."""

    status: str = "ok"
    reason: str | None = None
    routing_version: int | None = None


class RouterObserver:
    """Asks the router's operator listener how it is."""

    def __init__(self, client: httpx.AsyncClient, address: str, operator_address: str) -> None:
        self.address = address
        self.seen = RouterHealth(status="unknown", reason="not observed yet")
        self._client = client
        self._url = f"http://{operator_address}/healthz"

    async def observe(self) -> Pass:
        self.seen = await self._ask()
        return Pass(sentence=self.seen.reason or "healthy", settled=True)

    async def _ask(self) -> RouterHealth:
        try:
            async with asyncio.timeout(OBSERVATION_S_MAX):
                response = await self._client.get(self._url)
            said = msgspec.json.decode(response.content, type=RouterHealth)
        except TimeoutError:
            return RouterHealth(status="unknown", reason="the router does not answer in time")
        except (httpx.TransportError, msgspec.DecodeError) as exc:
            reason = f"the router cannot be asked: {exc or type(exc).__name__}"
            return RouterHealth(status="unknown", reason=reason)
        if response.status_code == 200:
            return msgspec.structs.replace(said, reason=None)
        reason = said.reason or f"the router answered {response.status_code}"
        return msgspec.structs.replace(said, status="unhealthy", reason=reason)

    def report(self, routing_version: int) -> RouterReport:
        version = self.seen.routing_version
        return RouterReport(
            address=self.address,
            healthy=self.seen.reason is None,
            reason=self.seen.reason,
            routing_version=version,
            routing_lag=None if version is None else max(0, routing_version - version),
        )


class Fleet:
    def __init__(
        self,
        cells_file: CellsFile,
        topology: Topology,
        client: httpx.AsyncClient,
        catalog: Catalog,
    ) -> None:
        self._catalog = catalog
        self._cells_file = cells_file
        self._specs = {
            cell.cell_name: topology.cell(cell.name)
            or CellSpec(name=cell.cell_name, zone=cell.zone)
            for cell in cells_file.cells
        }
        self.clients = {
            cell.cell_name: CellClient(
                client,
                name=cell.cell_name,
                operator_address=cell.operator_address,
                token=cell.operator_token,
            )
            for cell in cells_file.cells
        }
        self.reconcilers: Mapping[CellName, CellReconciler] = {
            cell.cell_name: CellReconciler(
                self._specs[cell.cell_name],
                cell.owner_dsn,
                self.clients[cell.cell_name],
                catalog,
            )
            for cell in cells_file.cells
        }
        self.router = RouterObserver(
            client, cells_file.router_address, cells_file.router_operator_address
        )

    async def record_cells(self) -> None:
        """Makes the catalog's cells those of the provider."""
        await self._catalog.ensure_cells(
            [
                {
                    "name": cell.name,
                    "zone": cell.zone,
                    "api_address": cell.api_address,
                    "accepts_tenants": self._specs[cell.cell_name].accepts_tenants,
                }
                for cell in self._cells_file.cells
            ]
        )

    async def run(self) -> None:
        """Every loop, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, reconciler in self.reconcilers.items():
                tasks.create_task(reconciler.run(), name=f"reconcile {name}")
            tasks.create_task(
                repeat("observe router", self.router.observe, OBSERVE_S), name="observe router"
            )

    def wake(self, cell: CellName) -> None:
        """Says that something about the cell's tenants changed."""
        if cell in self.reconcilers:
            self.reconcilers[cell].wake()

    async def candidates(self) -> Sequence[Candidate]:
        """The cells as placement sees them: counts by the catalog, health and rate as observed."""
        candidates = []
        for record in await self._catalog.cells():
            seen = self._observed(record.name)
            candidates.append(
                Candidate(
                    name=record.name,
                    accepts_tenants=record.accepts_tenants,
                    healthy=seen.healthy,
                    tenants=record.tenants,
                    commands_per_second=seen.commands_per_second or 0.0,
                )
            )
        return candidates

    async def status(self, routing_version: int) -> StatusReport:
        records = await self._catalog.cells()
        cells = [self._cell_report(record) for record in records]
        router = self.router.report(routing_version)
        return StatusReport(
            healthy=router.healthy and all(cell.healthy for cell in cells),
            cells=cells,
            tenants=sum(record.tenants for record in records),
            routing_version=routing_version,
            router=router,
        )

    def _observed(self, name: CellName) -> CellObservation:
        reconciler = self.reconcilers.get(name)
        return reconciler.observed if reconciler else NEVER_OBSERVED

    def _cell_report(self, record: CellRecord) -> CellReport:
        seen = self._observed(record.name)
        reconciler = self.reconcilers.get(record.name)
        return CellReport(
            name=record.name,
            zone=record.zone,
            address=record.api_address,
            accepts_tenants=record.accepts_tenants,
            healthy=seen.healthy,
            reason=seen.reason if reconciler else "it is not in cells.yaml, but has tenants",
            tenants=record.tenants,
            commands_per_second=seen.commands_per_second,
            queue_depth=seen.queue_depth,
            batch_ms_p99=seen.batch_ms_p99,
            schema_version=seen.schema_version,
            writer_epoch=seen.writer_epoch,
            last_error=seen.last_error,
            reconciled=reconciler.ensured.settled if reconciler else False,
            reconcile_sentence=reconciler.ensured.sentence if reconciler else "",
        )
