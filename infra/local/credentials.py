"""The platform's own tokens: made once per data directory, kept in its secrets, given by need.

The operator token is also written where the CLI of the same user looks for it.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from control_plane.access import token_path
from infra.errors import DataError
from infra.local.layout import DataDirectory
from infra.local.private import ensure_private_directory, generate_secret, write_private

TOKENS_FILE: Final = "tokens.json"


class Tokens(msgspec.Struct, frozen=True):
    operator: str
    """Commands the control plane."""
    router: str
    """Reads the routing table and nothing else."""
    cells: dict[str, str]
    """By cell: what the control plane shows to the cell's operator API."""
    webhooks: str = ""
    """What the keys of webhook endpoints are derived from, in whichever cell their tenant is."""

    signing: str = ""
    """What routers sign by; each cell gets a key derived from it."""

    def __repr__(self) -> str:
        return "Tokens(…)"


def ensure_tokens(data: DataDirectory, cells: Iterable[str]) -> Tokens:
    """The tokens of the data directory, generating those that are missing."""
    file = data.secrets / TOKENS_FILE
    try:
        known = msgspec.json.decode(file.read_bytes(), type=Tokens)
    except FileNotFoundError:
        known = Tokens(operator=generate_secret(), router=generate_secret(), cells={})
    except (OSError, msgspec.DecodeError) as exc:
        raise DataError(
            f"{file} cannot be read: {exc}. Remedy: remove it; new tokens are made at the next"
            " start, and other users of the operator token need the new one"
        ) from exc
    missing = {cell: generate_secret() for cell in cells if cell not in known.cells}
    tokens = Tokens(
        operator=known.operator,
        router=known.router,
        cells={**known.cells, **missing},
        webhooks=known.webhooks or generate_secret(),
        signing=known.signing or generate_secret(),
    )
    write_private(file, msgspec.json.encode(tokens).decode())
    return tokens


def publish_operator_token(control_url: str, tokens: Tokens) -> None:
    """Write the operator token, mode 0600, where `control_plane.access.read_token` finds it."""
    path = token_path(control_url)
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ensure_private_directory(path.parent)
        write_private(path, tokens.operator + "\n")
    except OSError as exc:
        raise DataError(
            f"the operator token cannot be written to {path}: {exc.strerror}. Remedy: set"
            " XDG_CONFIG_HOME to a directory that can be written"
        ) from exc
