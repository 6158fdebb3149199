"""Compiles the flush shim and says how to start a process under it.

The shim makes every flush of a process and of its children one millisecond slower (flush_shim.c).
Only the database is started under it: clients and generators flush nothing. It needs a C compiler;
where there is none the figures with the slower flush are skipped, visibly.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.errors import Skipped

FLUSH_DELAY_US: Final = 1_000
COMPILE_S_MAX: Final = 60
SOURCE: Final = Path(__file__).with_name("flush_shim.c")
COMPILERS: Final = ("cc", "gcc", "clang")


def compile_flush_shim(out_dir: Path) -> Path:
    """The shim as a shared library in `out_dir`, compiled when older than its source.

    Raises `Skipped` when there is no compiler or it refuses the source.
    """
    library = out_dir / "flush_shim.so"
    if library.exists() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise Skipped(f"no C compiler ({', '.join(COMPILERS)}): no figures with the slower flush")
    out_dir.mkdir(parents=True, exist_ok=True)
    # Compiled beside and renamed: a half-written library would stop every process preloading it.
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(unfinished), str(SOURCE)]
    done = subprocess.run(
        [*command, "-ldl"], capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False
    )
    if done.returncode != 0:
        raise Skipped(f"{compiler} refused {SOURCE.name}: {done.stderr.strip()}")
    unfinished.rename(library)
    return library


def flush_delay_environment(library: Path, delay_us: int = FLUSH_DELAY_US) -> Mapping[str, str]:
    """Environment variables that put a process under the shim."""
    return {"LD_PRELOAD": str(library.resolve()), "CLOISTER_FLUSH_DELAY_US": str(delay_us)}
