"""TCP ports of the platform: are they free, and which ones do the internal listeners get.

A port that is found free here may be taken a moment later; the process that then fails to listen
says so. Chosen ports lie below the range from which the system takes the ports of outgoing
connections, so that no connection ever sits on the port of a process that is being restarted.
"""

import random
import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from infra.errors import PortOccupied
from infra.local.private import write_private

HOST: Final = "127.0.0.1"
"""The local provider listens on the loopback only."""
PORT_MIN: Final = 10_000
PORT_MAX_FALLBACK: Final = 32_767
ATTEMPTS_MAX: Final = 500
LOCAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Whether a process of ours could listen on the port now."""
    return refusal(port) is None


def require_free(port: int, flag: str) -> None:
    """Raise PortOccupied, naming the port and the flag or key that would change it."""
    if (reason := refusal(port)) is not None:
        raise PortOccupied(
            f"cannot listen on {HOST}:{port}: {reason}. Remedy: stop what listens there, or choose"
            f" another port with {flag}"
        )


def refusal(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers themselves: a connection that is being closed does not occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as exc:
            return exc.strerror or str(exc)
    return None


def choose_port(taken: Collection[int]) -> int:
    """A free port that is not in `taken`. Raises PortOccupied if there is none to be found."""
    highest = local_range_start() - 1
    for _ in range(ATTEMPTS_MAX):
        port = random.randint(PORT_MIN, highest)
        if port not in taken and is_free(port):
            return port
    raise PortOccupied(f"no free port was found between {PORT_MIN} and {highest}")


def local_range_start() -> int:
    try:
        start = int(LOCAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return PORT_MAX_FALLBACK + 1
    # A system may be set to hand out nearly all ports; then there is nothing to keep clear of.
    return start if start > PORT_MIN + ATTEMPTS_MAX else PORT_MAX_FALLBACK + 1


def assign_ports(
    file: Path, names: Iterable[str], fixed: Mapping[str, int], reserved: Collection[int]
) -> dict[str, int]:
    """A port for each name, remembered in the file: the same as last time where it is free.

    `fixed` are chosen by the operator and only kept clear of, as are `reserved`.
    """
    remembered = read_ports(file)
    assigned = dict(fixed)
    taken = {*reserved, *fixed.values()}
    for name in names:
        if name in fixed:
            continue
        port = remembered.get(name)
        if port is None or port in taken or not is_free(port):
            port = choose_port(taken)
        assigned[name] = port
        taken.add(port)
    # Ports of cells that are not in the file now are remembered for when they come back.
    write_private(file, msgspec.json.encode({**remembered, **assigned}).decode())
    return assigned


def read_ports(file: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        # Nothing is lost with this file: other ports are chosen.
        return {}
