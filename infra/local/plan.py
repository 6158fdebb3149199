"""What one run of the platform consists of, decided before anything is started.

`make_plan` reads and writes the data directory and looks for binaries and free ports, but starts
no process; the caller holds the data directory's lock. `platform.py` runs the plan.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cell.schema import ROLES
from control_plane.postgres_parameters import ParameterRange, parse_described
from control_plane.topology import CellSpec, PostgresSpec, Topology, load_topology
from infra.errors import PortOccupied
from infra.local.binaries import Binaries, find_binaries, run_probe, unprivileged
from infra.local.credentials import Tokens, ensure_tokens
from infra.local.layout import DataDirectory
from infra.local.ports import HOST, assign_ports, choose_port, require_free
from infra.local.postgres import SOCKET_PATH_BYTES_MAX, Postgres

BUILT_IN_TOPOLOGY: Final = Path(__file__).with_name("cells.yaml")
"""The documented example; `cells.yaml` at the repository's root is a link to it."""
CATALOG_ROLE: Final = "cloister_catalog"
CATALOG_DATABASE: Final = "cloister_catalog"
CELL_DATABASE: Final = "cloister"
CATALOG_SIZING: Final = PostgresSpec(shared_buffers="32MB", max_connections=30)
"""The catalog holds a few rows per tenant."""
ROUTER_OPERATOR: Final = "operator of the router"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell with its addresses and its database."""

    spec: CellSpec
    api_port: int
    operator_port: int
    operator_token: str
    postgres: Postgres
    socket: Path | None = None
    """Where the router reaches it; None where the path is too long for one, and it uses TCP."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def api_address(self) -> str:
        return f"{HOST}:{self.api_port}"

    @property
    def operator_address(self) -> str:
        return f"{HOST}:{self.operator_port}"

    def dsn(self, role: str) -> str:
        return self.postgres.dsn(role, CELL_DATABASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    data: DataDirectory
    topology_file: Path
    """Absolute."""
    binaries: Binaries
    cells: tuple[CellPlan, ...]
    catalog: Postgres
    tokens: Tokens
    router_port: int
    router_operator_port: int
    control_port: int

    @property
    def router_url(self) -> str:
        return f"http://{HOST}:{self.router_port}"

    @property
    def control_url(self) -> str:
        return f"http://{HOST}:{self.control_port}"

    @property
    def unlisted_cells(self) -> list[str]:
        """Cells with data here that the topology does not name: they are not started."""
        listed = {cell.name for cell in self.cells}
        return sorted(e.name for e in self.data.cells.iterdir() if e.name not in listed)


def read_topology(file: Path | None, binaries: Binaries) -> tuple[Topology, Path]:
    """The topology and its absolute path; the built-in one where none is named.

    Raises TopologyInvalid, also for what the Postgres at hand would not take.
    """
    path = (BUILT_IN_TOPOLOGY if file is None else file).absolute()
    return load_topology(path, accepted=accepted_parameters(binaries)), path


def accepted_parameters(binaries: Binaries) -> Mapping[str, ParameterRange] | None:
    """What the server says it takes; None if it does not say (it still refuses at its start)."""
    described = run_probe([*unprivileged(), binaries.path("postgres"), "--describe-config"])
    return parse_described(described.stdout) if described.returncode == 0 else None


def make_plan(data: DataDirectory, file: Path | None, router_port: int, control_port: int) -> Plan:
    """Decide binaries, topology, ports and tokens. A port 0 means any free one.

    Raises PostgresNotFound, TopologyInvalid, PortOccupied.
    """
    binaries = find_binaries(os.environ)
    topology, topology_file = read_topology(file, binaries)
    router_port, control_port = public_ports(router_port, control_port)
    ports = internal_ports(data, topology, {router_port, control_port})
    tokens = ensure_tokens(data, [cell.name for cell in topology.cells])
    return Plan(
        data=data,
        topology_file=topology_file,
        binaries=binaries,
        cells=tuple(plan_cell(data, binaries, cell, ports, tokens) for cell in topology.cells),
        catalog=Postgres(
            name="catalog",
            directory=data.catalog,
            binaries=binaries,
            roles=(CATALOG_ROLE,),
            sizing=CATALOG_SIZING,
            log_file=data.log("catalog-postgres"),
        ),
        tokens=tokens,
        router_port=router_port,
        router_operator_port=ports[ROUTER_OPERATOR],
        control_port=control_port,
    )


def plan_cell(
    data: DataDirectory,
    binaries: Binaries,
    cell: CellSpec,
    ports: Mapping[str, int],
    tokens: Tokens,
) -> CellPlan:
    return CellPlan(
        spec=cell,
        api_port=ports[api_name(cell)],
        operator_port=ports[operator_name(cell)],
        operator_token=tokens.cells[cell.name],
        postgres=Postgres(
            name=cell.name,
            directory=data.cell(cell.name),
            binaries=binaries,
            roles=ROLES,
            sizing=cell.postgres,
            log_file=data.log(f"{cell.name}.postgres"),
        ),
        socket=socket_of(data, cell.name),
    )


def socket_of(data: DataDirectory, cell: str) -> Path | None:
    path = data.sockets / f"{cell}.sock"
    return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else None


def public_ports(router_port: int, control_port: int) -> tuple[int, int]:
    if router_port == control_port != 0:
        raise PortOccupied(
            f"port {router_port} cannot serve both the router and the control plane. Remedy: choose"
            " another port with --router-port or --control-port"
        )
    chosen: list[int] = []
    for port, flag in ((router_port, "--router-port"), (control_port, "--control-port")):
        if port:
            require_free(port, flag)
        chosen.append(port or choose_port({router_port, control_port, *chosen}))
    return chosen[0], chosen[1]


def internal_ports(data: DataDirectory, topology: Topology, reserved: set[int]) -> dict[str, int]:
    """Ports of the cells and of the router's operator listener, by name."""
    fixed: dict[str, int] = {}
    names = [ROUTER_OPERATOR]
    for cell in topology.cells:
        for name, key, port in (
            (api_name(cell), "port", cell.port),
            (operator_name(cell), "operator_port", cell.operator_port),
        ):
            names.append(name)
            if port is None:
                continue
            where = f"cells.{cell.name}.{key} in {topology.file}"
            if port in reserved:
                raise PortOccupied(
                    f"port {port} of {where} is the router's or the control plane's. Remedy: change"
                    " one of them"
                )
            require_free(port, where)
            fixed[name] = port
    return assign_ports(data.ports_file, names, fixed, reserved)


def api_name(cell: CellSpec) -> str:
    return f"{cell.name} api"


def operator_name(cell: CellSpec) -> str:
    return f"{cell.name} operator"
