"""Errors of a load.

LoadError
├── MappingInvalid         the mapping file, with the line of every problem; nothing was sent
├── SourceUnreadable       FILE (or a file beside it) cannot be read or written as asked
├── RowRejected            one row cannot be loaded; it goes to the reject file, the rest go on
├── LoadRefused            the platform will not take any row: credentials, ledger
└── PlatformUnreachable    no answer that counts before the deadline; the run can be resumed
"""

from collections.abc import Sequence

from control_plane.errors import ControlPlaneError, Problem


class LoadError(ControlPlaneError):
    """A load stopped."""

    code = "load_failed"


class MappingInvalid(LoadError):
    """The mapping file does not say how to load this file."""

    code = "mapping_invalid"

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        assert problems, "a file without problems is not invalid"
        self.file = file
        self.problems = tuple(sorted(problems))
        super().__init__(
            "\n".join(f"{file}:{p.line}: {p.reason}; {p.remedy}" for p in self.problems)
        )


class SourceUnreadable(LoadError):
    """A file cannot be read or written as asked."""

    code = "source_unreadable"


class RowRejected(LoadError):
    """One row cannot be loaded as it is."""

    code = "row_rejected"


class LoadRefused(LoadError):
    """The platform will not take any row of this load."""

    code = "load_refused"


class PlatformUnreachable(LoadError):
    """The platform gave no answer that counts before the deadline."""

    code = "platform_unreachable"
    retryable = True
