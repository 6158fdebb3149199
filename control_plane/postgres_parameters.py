"""Postgres parameters: which ones are the platform's, sizes, and what a server says it accepts.

Pure. `topology.py` refuses with this what no server could run with, before anything is started.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SIZE_UNITS: Mapping[str, int] = MappingProxyType(
    {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
)
SHARED_BUFFERS_BYTES_MIN = 128 << 10
SHARED_BUFFERS_BYTES_MAX = 8 << 40
"""Postgres counts at most 2^30 pages of 8 kB."""

_LOST_ON_CRASH = "an acknowledged write could be lost in a crash"
_PROVIDER = "the provider decides how the cell's Postgres is reached"
_READ_COMMITTED = "the guard of a batch needs READ COMMITTED"
_NO_FILES = "only the provider knows where the files of the instance are"

OWNED_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "shared_buffers": "it has its own key, postgres.shared_buffers",
        "max_connections": "it has its own key, postgres.max_connections",
        "listen_addresses": _PROVIDER,
        "port": _PROVIDER,
        "unix_socket_directories": _PROVIDER,
        "unix_socket_group": _PROVIDER,
        "unix_socket_permissions": _PROVIDER,
        "bonjour": _PROVIDER,
        "cluster_name": "it is the cell's name",
        "ssl": _PROVIDER,
        "password_encryption": "the platform's roles log in by scram-sha-256",
        "hba_file": _NO_FILES,
        "ident_file": _NO_FILES,
        "config_file": _NO_FILES,
        "data_directory": _NO_FILES,
        "external_pid_file": _NO_FILES,
        "fsync": _LOST_ON_CRASH,
        "full_page_writes": "a torn page after a crash could corrupt the ledger",
        "synchronous_commit": _LOST_ON_CRASH,
        "wal_sync_method": _LOST_ON_CRASH,
        "zero_damaged_pages": "damaged pages of a ledger must stop it, not vanish",
        "ignore_checksum_failure": "damaged pages of a ledger must stop it, not vanish",
        "ignore_system_indexes": "it is for repairs only",
        "allow_system_table_mods": "it is for repairs only",
        "default_transaction_isolation": _READ_COMMITTED,
        "default_transaction_read_only": "the cell could not write",
        "default_transaction_deferrable": _READ_COMMITTED,
        "row_security": "it keeps tenants apart",
        "session_replication_role": "it would switch constraints off",
        "search_path": "the cell's statements name their tables in the default schema",
        "session_preload_libraries": "code in every connection is the provider's decision",
        "local_preload_libraries": "code in every connection is the provider's decision",
        "autovacuum": "without it the cell's tables grow without end; tune it by `vacuum`",
        "TimeZone": "times in the ledger are UTC",
        "timezone": "times in the ledger are UTC",
        "client_encoding": "text in the ledger is UTF-8",
    }
)
"""Parameters `postgres.parameters` may not set, each with the reason."""


def parse_size(text: str) -> int | None:
    """The bytes of a size such as `256MB`, spelled as Postgres spells it; None if it is not one."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})(kB|MB|GB|TB)", text)
    return int(match[1]) * SIZE_UNITS[match[2]] if match else None


def render_value(value: str | int | float | bool) -> str | None:
    """The value as postgresql.conf has it between quotes; None if it could not stand there."""
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value)
    return text if text.isprintable() and len(text) <= 1000 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRange:
    """What a server accepts for one parameter, from `postgres --describe-config`."""

    kind: str
    """BOOLEAN, INTEGER, REAL, STRING or ENUM."""
    minimum: float | None = None
    maximum: float | None = None
    """In the parameter's base unit; None where the kind has no range."""

    def refusal(self, value: str) -> str | None:
        """Why the server would not take this value, or None.

        A number with a unit is left to the server, as its base unit is not known here.
        """
        if self.kind == "BOOLEAN" and value.lower() not in _BOOLEANS:
            return f"{value!r} is not on or off"
        if self.kind not in ("INTEGER", "REAL"):
            return None
        if unit := re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)? *([a-zA-Z]+)", value):
            known = ", ".join(_UNITS)
            return None if unit[1] in _UNITS else f"{value!r} has no unit of {known}"
        try:
            number = float(value)
        except ValueError:
            return f"{value!r} is not a number"
        if self.minimum is not None and number < self.minimum:
            return f"{value} is below {self.minimum:g}"
        if self.maximum is not None and number > self.maximum:
            return f"{value} is above {self.maximum:g}"
        return None


_UNITS = ("B", "kB", "MB", "GB", "TB", "us", "ms", "s", "min", "h", "d")
"""As Postgres spells them; it takes no other spelling."""
_BOOLEANS = frozenset({"on", "off", "true", "false", "yes", "no", "1", "0"})


def parse_described(text: str) -> dict[str, ParameterRange]:
    """Reads the output of `postgres --describe-config` (tab-separated, one parameter a line).

    Fields: name, context, group, kind, default, minimum, maximum, short and long description.
    """
    ranges = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) < 7:
            continue
        name, kind = fields[0], fields[3]
        numeric = kind in ("INTEGER", "REAL")
        ranges[name.lower()] = ParameterRange(
            kind=kind,
            minimum=float(fields[5]) if numeric else None,
            maximum=float(fields[6]) if numeric else None,
        )
    return ranges
