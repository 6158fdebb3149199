"""Every error of the control plane, as a tree.

    ControlPlaneError
    ├── ConfigurationError            what an operator wrote does not work; nothing was started
    │   ├── TopologyInvalid           cells.yaml, with the line of every problem
    │   ├── SettingsInvalid           the environment or the file of cells
    │   └── TokenUnavailable          no operator token that may be used
    ├── RequestError                  the caller of the HTTP API must change the request
    │   ├── RequestMalformed          400
    │   ├── Unauthenticated           401
    │   ├── Forbidden                 403
    │   ├── NotFound                  404: tenant, key, route
    │   ├── SlugInUse                 409
    │   ├── TenantProvisioning        409: its creation has to be completed first
    │   ├── PlacementRefused          422: all cells are closed, or the named one is unknown
    │   ├── MoveInProgress            409: the tenant's last move has to be finished first
    │   ├── MoveDecided               409: it is too late to abort
    │   ├── WindowClosed              409: it is too early or too late to roll back
    │   └── BodyTooLarge              413
    ├── CatalogError                  the control plane's own database
    │   ├── CatalogTooNew             a newer release wrote it; this one must not touch it
    │   ├── CatalogUnavailable        cannot be reached now
    │   └── PlacementChanged          a compare-and-set found another value
    ├── PlatformError                 the control plane as its clients (the CLI) see it
    │   ├── PlatformUnavailable       does not answer
    │   └── PlatformRefused           answered with an error; its code and status are kept
    └── CellError                     a cell as the control plane sees it
        ├── NoOpenCell                no open cell is healthy
        ├── CellUnavailable           cannot be reached, or not in time
        └── CellRefused               the cell answered, and said no

Lower errors (psycopg, httpx, yaml, msgspec) are translated where they are met, with `from`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class ControlPlaneError(Exception):
    """Something went wrong in the control plane."""

    code = "internal"
    """Machine-readable name, as in the HTTP API's `errors.code`."""
    status = 500
    """HTTP status of the answer."""
    retryable = False
    """Whether the same request may succeed later without a change."""
    parameter: str | None = None
    """The part of the request that is wrong, if one is."""

    def __init__(self, message: str = "", *, parameter: str | None = None) -> None:
        super().__init__(message or self.__doc__ or self.code)
        self.parameter = parameter


class ConfigurationError(ControlPlaneError):
    """The configuration does not work."""

    code = "configuration_invalid"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One thing that is wrong in a file, and what to do about it."""

    line: int
    """Counted from 1."""
    reason: str
    remedy: str


class TopologyInvalid(ConfigurationError):
    """The topology file does not describe cells that can be run."""

    code = "topology_invalid"

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        assert problems, "a file without problems is not invalid"
        self.file = file
        self.problems = tuple(sorted(problems))
        super().__init__(
            "\n".join(f"{file}:{p.line}: {p.reason}; {p.remedy}" for p in self.problems)
        )


class SettingsInvalid(ConfigurationError):
    """A setting of the environment is missing or wrong."""

    code = "settings_invalid"


class TokenUnavailable(ConfigurationError):
    """No operator token that may be used was found."""

    code = "token_unavailable"


class RequestError(ControlPlaneError):
    """The request cannot be served as it is."""

    code = "request_invalid"
    status = 400


class RequestMalformed(RequestError):
    """The request is not what this route takes."""

    code = "request_malformed"


class Unauthenticated(RequestError):
    """The bearer token is missing or wrong."""

    code = "unauthenticated"
    status = 401


class Forbidden(RequestError):
    """The bearer token is valid, but not for this route."""

    code = "forbidden"
    status = 403


class NotFound(RequestError):
    """There is no such tenant, key or route."""

    code = "not_found"
    status = 404


class SlugInUse(RequestError):
    """A tenant of that name exists already."""

    code = "slug_in_use"
    status = 409


class TenantProvisioning(RequestError):
    """The tenant's creation began and was not completed."""

    code = "tenant_provisioning"
    status = 409


class PlacementRefused(RequestError):
    """No cell takes new tenants, or not the named one."""

    code = "placement_refused"
    status = 422


class MoveInProgress(RequestError):
    """The tenant is being moved, or its last move is not finished."""

    code = "move_in_progress"
    status = 409
    retryable = True


class MoveDecided(RequestError):
    """The move is past its point of no return."""

    code = "move_decided"
    status = 409


class WindowClosed(RequestError):
    """The move cannot be rolled back, or not any more."""

    code = "window_closed"
    status = 409


class BodyTooLarge(RequestError):
    """The request's body is above the limit."""

    code = "body_too_large"
    status = 413


class CatalogError(ControlPlaneError):
    """The catalog could not be read or written."""

    code = "catalog_error"


class CatalogTooNew(CatalogError):
    """The catalog was written by a newer release."""

    code = "catalog_too_new"


class CatalogUnavailable(CatalogError):
    """The catalog cannot be reached."""

    code = "catalog_unavailable"
    status = 503
    retryable = True


class PlacementChanged(CatalogError):
    """The placement is not the one this change was decided on."""

    code = "placement_changed"
    status = 409
    retryable = True


class CellError(ControlPlaneError):
    """A cell did not do what was asked."""

    code = "cell_error"
    status = 502


class NoOpenCell(CellError):
    """No cell that takes new tenants is healthy."""

    code = "no_open_cell"
    status = 503
    retryable = True


class CellUnavailable(CellError):
    """The cell cannot be reached, or did not answer in time."""

    code = "cell_unavailable"
    status = 503
    retryable = True


class RouterUnavailable(CellError):
    """The router cannot be asked, or did not answer in time."""

    code = "router_unavailable"
    status = 503
    retryable = True


class CellRefused(CellError):
    """The cell answered that it will not do it."""

    code = "cell_refused"


class PlatformError(ControlPlaneError):
    """The control plane did not do what was asked."""

    code = "platform_error"


class PlatformUnavailable(PlatformError):
    """The control plane does not answer."""

    code = "platform_unavailable"
    status = 503
    retryable = True


class PlatformRefused(PlatformError):
    """The control plane answered with an error."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = status in (429, 503)
