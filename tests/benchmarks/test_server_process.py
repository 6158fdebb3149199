"""Servers under measurement: whoever starts them takes them along, however it ends."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.server_process import accepts, free_address

ENDED_S_MAX = 30.0

MEASURES = """
import sys
from pathlib import Path
from benchmarks.server_process import Server
address, directory = sys.argv[1:]
host, _, port = address.rpartition(":")
command = [sys.executable, "-m", "http.server", "--bind", host, "--directory", directory, port]
with Server("files", command, address=address, directory=Path(directory)):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_benchmark_leaves_no_server(tmp_path: Path) -> None:
    address = free_address()
    with subprocess.Popen(
        [sys.executable, "-c", MEASURES, address, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as benchmark:
        assert benchmark.stdout is not None
        assert benchmark.stdout.readline() == "ready\n"
        assert accepts(address)
        benchmark.kill()
    end_s = time.monotonic() + ENDED_S_MAX
    while accepts(address):
        assert time.monotonic() < end_s, "the server is still there"
