"""The cell's settings: read once from the environment into one frozen object.

Every variable is `CLOISTER_CELL_` and the field's name in capitals. A missing or impossible value
stops the process with the variable's name.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cell.errors import SettingsInvalid

PREFIX: Final = "CLOISTER_CELL_"
LINGER_MS_MAX: Final = 1000


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


class Dsn(str):
    """A connection string; holds a password, and so never shows itself."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, without repeating the text."""
        try:
            conninfo_to_dict(text)
        except psycopg.ProgrammingError as exc:
            raise ValueError("not a Postgres connection string") from exc
        return cls(text)

    def __repr__(self) -> str:
        return "Dsn(…)"


class RouterKey(str):
    """A key of 32 bytes in hex; never shows itself."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, without repeating the text."""
        if re.fullmatch("[0-9a-f]{64}", text) is None:
            raise ValueError("not 64 hexadecimal digits")
        return cls(text)

    def __repr__(self) -> str:
        return "RouterKey(…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    name: str
    """Of the cell, in its logs and metrics."""
    listen: Address
    """Where tenants' requests arrive, from routers."""
    socket: Path | None = None
    """A Unix socket where they arrive as well, from routers of the same user on this machine;
    cheaper than TCP. Created at the start, in place of one that was left behind."""
    operator_listen: Address
    """Where /healthz, /metrics and /operator answer; loopback or a private network."""
    operator_token: str = field(repr=False)
    """Bearer token which the control plane sends."""
    writer_dsn: Dsn
    """Role cloister_writer, for the sequencer: direct, never through a pooler."""
    reader_dsn: Dsn
    """Role cloister_reader; may lead through a pooler in transaction mode."""
    incarnation_file: Path | None = None
    """By which a database that was restored is told (`cell.restore_watch`): on the cell's machine,
    and in no backup of the database."""
    router_key: RouterKey | None = field(default=None, repr=False)
    """What the routers' signatures are checked by (`cell.signature`): requests without one are
    refused. Unset: any are taken; only for a cell that nobody else can reach."""
    owner_dsn: Dsn | None = None
    """Role cloister_owner; if set, the cell applies missing migrations at its start."""

    pool_min: int = 2
    pool_max: int = 8
    """Connections for reads."""
    sequencer_batch_size: int = 1000
    sequencer_linger_ms: int = 0
    """How long an idle sequencer waits for more after the first command of a batch."""
    sequencer_queue_commands_max: int = 8192
    sequencer_queue_commands_per_tenant_max: int = 4096
    sequencer_cache_accounts: int = 50_000
    """Accounts held in memory: about 2 KB each."""
    webhook_secret: str | None = field(default=None, repr=False)
    """The keys of webhook endpoints are derived from it; the same in all cells of a platform.
    Without it there are no webhooks; changed, every endpoint has another key."""
    webhook_private_targets: bool = False
    """May webhooks go to loopback, link-local and private addresses?"""
    webhook_attempts_max: int = 100
    """Failed attempts after which an event is given up as a dead letter."""
    webhook_retry_ms: int = 1000
    """Pause after the first failed attempt; doubled with each one, up to ten minutes."""
    sequencer_async_batch_size: int = 500
    """Rows of the durable queue that are in flight together at most."""
    sequencer_async_linger_ms: int = 50
    """How long the first row of an idle durable queue waits for company."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises SettingsInvalid, which names the variable."""
        values: dict[str, Any] = {f.name: _value(f, environment) for f in fields(cls)}
        settings = cls(**values)
        if settings.pool_min > settings.pool_max:
            raise SettingsInvalid(
                f"{PREFIX}POOL_MIN: {settings.pool_min} is above {PREFIX}POOL_MAX,"
                f" {settings.pool_max}"
            )
        return settings


def _value(setting: Field[Any], environment: Mapping[str, str]) -> object:
    name = PREFIX + setting.name.upper()
    text = environment.get(name, "").strip()
    if not text:
        if setting.default is MISSING:
            raise SettingsInvalid(f"{name} is not set")
        return setting.default
    try:
        if setting.name.endswith("linger_ms"):
            return _whole(text, 0, LINGER_MS_MAX)
        return _PARSERS[setting.type](text)
    except ValueError as exc:
        raise SettingsInvalid(f"{name}: {exc}") from exc


def _whole(text: str, least: int = 1, most: int = 100_000_000) -> int:
    if not (text.isascii() and text.isdecimal()) or not least <= int(text[:20]) <= most:
        raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


_PARSERS: Final[dict[object, Any]] = {
    str: str,
    str | None: str,
    bool: _flag,
    int: _whole,
    Address: Address.parse,
    Dsn: Dsn.parse,
    Dsn | None: Dsn.parse,
    Path | None: Path,
    RouterKey | None: RouterKey.parse,
}
