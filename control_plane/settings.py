"""The control plane's settings: read once from the environment and the file of cells.

A missing or impossible value stops the process with its name. Values that are secrets never show
in a `repr`.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from control_plane.errors import SettingsInvalid
from control_plane.routing import CellName

PREFIX = "CLOISTER_CONTROL_"
TOKEN_CHARS_MIN = 16
CELLS_FILE_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    listen: Address
    """Where the HTTP API answers. Default 127.0.0.1:8081; loopback or a private network."""
    catalog_dsn: str = field(repr=False)
    operator_token: str = field(repr=False)
    """Bearer token of operators; may do everything."""
    router_token: str = field(repr=False)
    """Bearer token of routers; may read the routing table."""
    cells_file: Path
    """Written by the provider, mode 0600: how to reach each cell and its database."""
    fail_points: Path | None = None
    """For tests of moves only; see `control_plane.move.fail_points`."""


class CellEndpoint(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """How to reach one cell that the provider runs."""

    name: str
    zone: str
    api_address: str
    """`host:port` of the tenant API, as routers reach it."""
    operator_address: str
    """`host:port` of the operator API, as the control plane reaches it."""
    operator_token: str
    owner_dsn: str
    """For migrations and tuning."""
    auditor_dsn: str
    """For verification; reads every tenant's rows and writes nothing."""
    mover_dsn: str
    """For moves; copies and deletes a tenant's rows, and changes its head as the cell allows it."""

    def __repr__(self) -> str:
        return f"CellEndpoint({self.name}, {self.api_address})"

    @property
    def cell_name(self) -> CellName:
        return CellName(self.name)


class CellsFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider says it runs."""

    topology_file: str | None
    """cells.yaml; none: every cell has the defaults."""
    cells: tuple[CellEndpoint, ...]
    router_address: str
    router_operator_address: str


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsInvalid, naming the variable."""
    operator_token = _token(environment, "OPERATOR_TOKEN")
    router_token = _token(environment, "ROUTER_TOKEN")
    if operator_token == router_token:
        raise SettingsInvalid(
            f"{PREFIX}ROUTER_TOKEN equals {PREFIX}OPERATOR_TOKEN; a router must not be an operator"
        )
    dsn = _required(environment, "CATALOG_DSN")
    try:
        conninfo_to_dict(dsn)
    except ProgrammingError as exc:
        raise SettingsInvalid(f"{PREFIX}CATALOG_DSN is not a connection string") from exc
    points = environment.get(PREFIX + "FAIL_POINTS", "").strip()
    return Settings(
        listen=parse_address(
            environment.get(PREFIX + "LISTEN", "").strip() or "127.0.0.1:8081", PREFIX + "LISTEN"
        ),
        catalog_dsn=dsn,
        operator_token=operator_token,
        router_token=router_token,
        cells_file=Path(_required(environment, "CELLS_FILE")),
        fail_points=Path(points) if points else None,
    )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(PREFIX + name, "").strip()
    if not value:
        raise SettingsInvalid(f"{PREFIX}{name} is not set")
    return value


def _token(environment: Mapping[str, str], name: str) -> str:
    token = _required(environment, name)
    if len(token) < TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable():
        raise SettingsInvalid(
            f"{PREFIX}{name} must have at least {TOKEN_CHARS_MIN} printable ASCII characters"
        )
    return token


def parse_address(text: str, name: str) -> Address:
    """From `host:port` or `[v6]:port`; raises SettingsInvalid with `name`."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise SettingsInvalid(f"{name} is {text!r}, not host:port")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def read_cells_file(path: Path) -> CellsFile:
    """Raises SettingsInvalid with the file's name, and where in it the mistake is.

    The file holds tokens and passwords: one that others may read is refused.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SettingsInvalid(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); chmod 600 it"
                )
            content = file.read(CELLS_FILE_BYTES_MAX)
    except OSError as exc:
        raise SettingsInvalid(f"{PREFIX}CELLS_FILE {path} cannot be read: {exc.strerror}") from exc
    try:
        cells_file = msgspec.json.decode(content, type=CellsFile)
    except msgspec.DecodeError as exc:
        raise SettingsInvalid(f"{path}: {exc}") from exc
    names = [cell.name for cell in cells_file.cells]
    if not names or len(set(names)) < len(names):
        raise SettingsInvalid(f"{path}: cells must be there, each name once; found {names}")
    for cell in cells_file.cells:
        parse_address(cell.api_address, f"{path}: api_address of {cell.name}")
        parse_address(cell.operator_address, f"{path}: operator_address of {cell.name}")
    parse_address(cells_file.router_operator_address, f"{path}: router_operator_address")
    return cells_file
