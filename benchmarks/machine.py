"""The machine that figures were measured on: no figure means anything without it."""

import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.percentiles import median
from infra.local.binaries import find_binaries

FLUSHES: Final = 200
FLUSH_BYTES: Final = 8_192
SLICES: Final = 2_000
SLICE_TURNS: Final = 20_000
"""Less than a millisecond: most slices fall between two interruptions."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpu: str
    cores: int
    """Processors this process may use."""
    memory_gib: float
    kernel: str
    python: str
    postgres: str
    flush_us: float
    """Median of one 8 KiB write with fdatasync, where temporary files are; without any shim."""
    load_average: float
    """Of the last minute before the run: what else the machine was doing."""
    processor_share: float
    """How much of a processor a loop that does nothing else gets: what its host was doing."""


def examine_machine() -> Machine:
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        postgres=find_binaries().version,
        flush_us=round(flush_us(), 1),
        load_average=round(os.getloadavg()[0], 2),
        processor_share=round(processor_share(), 2),
    )


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def flush_us() -> float:
    """What a flush really costs here: a disk that does not wait for its medium shows at once."""
    times: list[float] = []
    block = b"\0" * FLUSH_BYTES
    with tempfile.TemporaryFile() as file:
        for _ in range(FLUSHES):
            file.write(block)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return median(times) * 1e6


def processor_share() -> float:
    """The time that equal slices of work take undisturbed, relative to what they took."""
    times: list[float] = []
    for _ in range(SLICES):
        started = time.perf_counter()
        for _ in range(SLICE_TURNS):
            pass
        times.append(time.perf_counter() - started)
    return min(1.0, median(times) * SLICES / sum(times))
