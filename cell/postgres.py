"""How the cell's parts connect to their Postgres, and how its refusals read in a log."""

from typing import Final

from psycopg.conninfo import make_conninfo

CONNECT_TIMEOUT_S: Final = 10
"""A Postgres that has just started, or a busy machine, takes seconds to let somebody in."""


def connection_string(dsn: str, part: str, **settings: str | int) -> str:
    """`dsn` with the part's name for pg_stat_activity, a bounded wait, and settings of Postgres."""
    options = " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    return make_conninfo(
        dsn,
        application_name=f"cloister-{part}",
        connect_timeout=CONNECT_TIMEOUT_S,
        options=options or None,
    )


def _escaped(value: str | int) -> str:
    return str(value).replace("\\", r"\\").replace(" ", r"\ ")


def one_line(error: BaseException) -> str:
    """The error's class and text without line ends."""
    return " ".join(f"{type(error).__name__}: {error}".split())
