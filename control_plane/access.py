"""Where the operator token of a platform is kept for the commands of the same user.

`cloister up` writes the token to `token_path` with mode 0600; the CLI reads it with `read_token`.
CLOISTER_TOKEN overrides the file, for operators on another machine.
"""

import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

from control_plane.errors import TokenUnavailable

TOKEN_VARIABLE = "CLOISTER_TOKEN"
TOKEN_BYTES_MAX = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def token_path(control_url: str) -> Path:
    """The file of the operator token for the control plane at this URL (http://host:port)."""
    try:
        parts = urlsplit(control_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise TokenUnavailable(
            f"{control_url!r} is not the URL of a control plane; write http://host:port"
        )
    port = port or {"http": 80, "https": 443}[parts.scheme]
    if host == "localhost":
        # As `up` names it.
        host = "127.0.0.1"
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    # An IPv6 address keeps its colons out of the file's name.
    return Path(home) / "cloister" / "tokens" / f"{host.replace(':', '-')}_{port}"


def read_token(control_url: str) -> str:
    """The operator token for this control plane. Raises TokenUnavailable, naming the remedy.

    A file that others may read is refused: whoever can read it commands the platform.
    """
    given = os.environ.get(TOKEN_VARIABLE)
    if given:
        return _usable(given, TOKEN_VARIABLE)
    path = token_path(control_url)
    try:
        with path.open("rb") as file:
            # The open file is asked, not the path: the path could be another file by then.
            mode = os.fstat(file.fileno()).st_mode
            if mode & _OTHERS:
                raise TokenUnavailable(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o});"
                    f" run `chmod 600 {path}`"
                )
            content = file.read(TOKEN_BYTES_MAX + 1)
    except FileNotFoundError as exc:
        raise TokenUnavailable(
            f"no operator token for {control_url}: start the platform with `cloister up` as this"
            f" user (it writes {path}), or set {TOKEN_VARIABLE}"
        ) from exc
    except OSError as exc:
        raise TokenUnavailable(
            f"{path} cannot be read: {exc.strerror}; set {TOKEN_VARIABLE} instead"
        ) from exc
    return _usable(content.decode("ascii", errors="replace"), str(path))


def _usable(text: str, origin: str) -> str:
    token = text.strip()
    printable = token.isascii() and token.isprintable() and " " not in token
    if not token or not printable or len(token) > TOKEN_BYTES_MAX:
        raise TokenUnavailable(f"{origin} does not hold a token; run `cloister up` again")
    return token
