"""`python -m control_plane`: reads settings, then serves until SIGTERM.

Exit codes: 0 after SIGTERM or SIGINT, 2 for bad settings or a catalog of a newer release (one line
on stderr says which), 1 for anything else.
"""

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from cell.logs import log_to_stderr
from control_plane.errors import CatalogTooNew, ConfigurationError
from control_plane.server import serve
from control_plane.settings import CellsFile, read_cells_file, read_settings
from control_plane.topology import Topology, load_topology


def main() -> int:
    log_to_stderr("control-plane")
    try:
        settings = read_settings(os.environ)
        cells_file = read_cells_file(settings.cells_file)
        topology = read_topology(cells_file)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, cells_file, topology))
    except ConfigurationError as exc:
        return refuse(exc)
    except ExceptionGroup as group:
        # What stops the loops arrives in the group of the tasks it stopped.
        newer = group.subgroup(CatalogTooNew)
        if newer is None:
            raise
        return refuse(newer.exceptions[0])
    return 0


def read_topology(cells_file: CellsFile) -> Topology:
    """The desired cells; without a file every cell has the defaults."""
    if cells_file.topology_file is None:
        return Topology(file="", cells=())
    return load_topology(Path(cells_file.topology_file))


def refuse(exc: BaseException) -> int:
    print(f"control plane: {exc}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
