"""Errors of the local provider.

    InfraError
    ├── PostgresError
    │   ├── PostgresNotFound            no usable binaries
    │   ├── DataDirectoryVersion        made by another major version of Postgres
    │   ├── PostgresInUse               another postmaster runs on the data directory
    │   └── PostgresStartFailed         the server exited or did not answer in time
    ├── DataError
    │   ├── NotADataDirectory           the directory holds something else
    │   ├── DataFormat                  written by another format of the platform
    │   ├── DiskFull                    no room for what has to be written
    │   └── PlatformRunning             another supervisor holds the lock
    ├── PortOccupied                    an address of the platform is taken
    ├── UnsafePath                      a private file or directory belongs to somebody else
    ├── StartFailed                     a process of the platform did not become healthy
    ├── StartInterrupted                told to stop before it was ready
    └── StopFailed                      a running platform did not stop in time

Every message names the values that failed and what to do about it; the CLI prints it and exits
with `status`.
"""

from typing import ClassVar


class InfraError(Exception):
    """The platform could not be started, stopped or kept running."""

    code: ClassVar[str] = "infra_error"
    status: ClassVar[int] = 1
    """Exit status of the command that ends with this error."""
    retryable: ClassVar[bool] = False
    """Whether the same command may succeed later with nothing changed by the caller."""


class PostgresError(InfraError):
    """An embedded Postgres cannot do what was asked."""

    code = "postgres_error"


class PostgresNotFound(PostgresError):
    """No Postgres binaries that are new enough and can be executed."""

    code = "postgres_not_found"


class DataDirectoryVersion(PostgresError):
    """The data directory was made by another major version of Postgres."""

    code = "postgres_data_version"


class PostgresInUse(PostgresError):
    """Another Postgres runs on the data directory."""

    code = "postgres_in_use"
    retryable = True


class PostgresStartFailed(PostgresError):
    """Postgres exited, or did not answer before its deadline."""

    code = "postgres_start_failed"


class DataError(InfraError):
    """The platform's data directory cannot be used."""

    code = "data_error"


class NotADataDirectory(DataError):
    """The directory holds files, but none that the platform wrote."""

    code = "data_directory_foreign"


class DataFormat(DataError):
    """The data directory was written by a release with another layout."""

    code = "data_directory_format"


class DiskFull(DataError):
    """The disk of the data directory is full."""

    code = "data_disk_full"


class PlatformRunning(DataError):
    """Another supervisor holds the data directory."""

    code = "data_directory_in_use"
    retryable = True


class PortOccupied(InfraError):
    """Something else listens on an address the platform was told to use."""

    code = "port_occupied"
    retryable = True


class UnsafePath(InfraError):
    """A path that must be private is owned by somebody else, is a link, or is open to others."""

    code = "unsafe_path"


class StartFailed(InfraError):
    """A process of the platform exited or did not become healthy before its deadline."""

    code = "start_failed"


class StartInterrupted(InfraError):
    """The platform was told to stop before it was ready."""

    code = "start_interrupted"
    status = 130
    retryable = True


class StopFailed(InfraError):
    """A running platform did not stop before its deadline."""

    code = "stop_failed"
    retryable = True
