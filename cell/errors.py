"""Errors of the cell.

CellError
├── ApiError                    answered to the client: status, code, parameter
│   ├── InvalidRequest          400  the bytes are no well-formed request
│   ├── Unauthenticated         401  credentials missing, unknown or revoked
│   ├── NotFound                404  no such object for this tenant
│   ├── MethodNotAllowed        405  the path exists, the method does not
│   ├── Conflict                409  ambiguous, or the same key is in flight
│   ├── TooLarge                413  the body is over the limit
│   ├── UnsupportedMediaType    415  not JSON, or a compressed body
│   ├── Unprocessable           422  well-formed, but a field or a rule of the ledger forbids it
│   │   └── BalanceLockBroken   422  a balance would not be as the caller requires
│   ├── NotApplied              421/429/503  a verdict: nothing was queued or done
│   ├── OutcomeUnknown          503  the answer did not come in time; repeat with the same key
│   └── Unavailable             503  the database cannot be read now
├── SettingsInvalid             a setting is missing or impossible; the variable is named
├── SchemaMismatch              the database's schema is not the one this code knows
└── WriterFenced                a later sequencer owns this database; this process must stop
"""

from cell.wire import STATUS, Verdict


class CellError(Exception):
    """Any error of the cell."""

    retryable = False
    """Could the same request, sent again unchanged, have another outcome?"""


class ApiError(CellError):
    """An error answered to the client."""

    status = 500
    code = "parameter_invalid"

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        if code is not None:
            self.code = code


class InvalidRequest(ApiError):
    """The bytes are no well-formed request."""

    status = 400


class Unauthenticated(ApiError):
    """Credentials are missing, unknown or revoked."""

    status = 401
    code = "invalid_key"


class NotFromRouter(ApiError):
    """The request carries no signature of one of the platform's routers, or a used one."""

    status = 403
    code = "forbidden"


class NotFound(ApiError):
    """This tenant has no such object; the same words whether or not another one has."""

    status = 404
    code = "resource_not_found"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status = 405
    code = "not_found"

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class Conflict(ApiError):
    """The request is ambiguous, or one with the same idempotency key is still in flight."""

    status = 409
    code = "conflict"

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class TooLarge(ApiError):
    """The body is over the limit."""

    status = 413


class UnsupportedMediaType(ApiError):
    """The body is not JSON, or is compressed."""

    status = 415
    code = "header_invalid"


class Unprocessable(ApiError):
    """Well-formed, but a field or a rule of the ledger forbids it."""

    status = 422


class BalanceLockBroken(Unprocessable):
    """A balance would not be as the caller requires; all else is well with the transaction."""


class NotApplied(ApiError):
    """A verdict: nothing was queued or done."""

    code = "conflict"
    retryable = True

    def __init__(
        self, verdict: Verdict, message: str, epoch: int | None = None, moved_to: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = STATUS[verdict]
        self.verdict = verdict
        self.epoch = epoch
        self.moved_to = moved_to
        if verdict is Verdict.OVERLOADED:
            self.code = "too_many_requests"


class OutcomeUnknown(ApiError):
    """The answer did not come in time; a repeat with the same idempotency key tells.

    A POST without a key could be done twice: its answer tells SDKs not to repeat it.
    """

    status = 503
    code = "conflict"
    retryable = True


class Unavailable(ApiError):
    """The database cannot be read now: no connection free, or no answer in time."""

    status = 503
    code = "too_many_requests"
    retryable = True


class SettingsInvalid(CellError):
    """A setting is missing or impossible; the message names its variable."""


class SchemaMismatch(CellError):
    """The database's schema is not the one this code knows."""


class WriterFenced(CellError):
    """A later sequencer owns this database; this process must stop."""
