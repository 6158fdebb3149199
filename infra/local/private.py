"""Private files and directories: written whole or not at all, readable by their owner alone.

Everything secret of a platform (passwords, tokens, API keys) goes through here.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from infra.errors import UnsafePath

SECRET_BYTES: Final = 32
"""Entropy of a generated password or token."""


def generate_secret() -> str:
    """A new random secret, safe in URLs, headers and connection strings."""
    return secrets.token_urlsafe(SECRET_BYTES)


def write_private(path: Path, text: str) -> None:
    """Replace the file with `text`, mode 0600; a crash leaves the old or the new content, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and new names in the directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ensure_private_directory(path: Path) -> Path:
    """Create the directory with mode 0700, or check that it is ours and no link.

    Raises UnsafePath where it belongs to another user or is no directory: in a shared place (the
    system's temporary directory) somebody else may have been there first.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{path} must be a directory of ours, but is something else; remove it")
    if found.st_uid != os.geteuid():
        raise UnsafePath(
            f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()}; remove it, or run as"
            " its owner"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path
