"""Answers: what goes back to a client, and every error in the API's one form.

An error is `{"errors": {"code", "message", "parameter"?}}` with headers that say whether repeating
helps: the SDKs repeat 409, 429 and 5xx by themselves unless told otherwise.
"""

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from cell.errors import (
    ApiError,
    Conflict,
    MethodNotAllowed,
    NotApplied,
    OutcomeUnknown,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from cell.wire import EPOCH_HEADER, MOVED_TO_HEADER, NOT_APPLIED_HEADER

Headers = tuple[tuple[bytes, bytes], ...]

IN_FLIGHT_RETRY_MS: Final = 100
"""A command is settled within a few milliseconds; the SDK's own pause would be half a second."""

UNAVAILABLE_RETRY_S: Final = 1
_RETRY_AFTER: Final = (b"retry-after", str(UNAVAILABLE_RETRY_S).encode())


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    headers: Headers = ()


_encoder: Final = msgspec.json.Encoder()


def render(view: Any) -> bytes:
    """JSON of a view; the same view always gives the same bytes."""
    return _encoder.encode(view)


class Problem(msgspec.Struct, frozen=True):
    code: str
    message: str
    parameter: str | UnsetType = UNSET


class ErrorView(msgspec.Struct, frozen=True):
    errors: Problem


def answer_error(error: ApiError, *, repeatable: bool) -> Answer:
    """`repeatable`: whatever came of it, the same request sent again does no harm."""
    parameter = UNSET if error.parameter is None else error.parameter
    view = ErrorView(Problem(error.code, error.message, parameter))
    return Answer(error.status, render(view), _error_headers(error, repeatable))


def answer_failure(*, repeatable: bool) -> Answer:
    """The answer to a mistake of ours: what happened is in the log, under the request id.

    It may have happened after the commit; `repeatable` as of `answer_error`.
    """
    problem = Problem("internal_error", "the cell failed; its log has the reason")
    return Answer(500, render(ErrorView(problem)), (_should_retry(repeatable),))


def _should_retry(helps: bool) -> tuple[bytes, bytes]:
    return (b"x-should-retry", b"true" if helps else b"false")


def _error_headers(error: ApiError, repeatable: bool) -> Headers:
    if isinstance(error, Conflict):
        if error.retryable:
            pause = str(IN_FLIGHT_RETRY_MS).encode()
            return (_should_retry(True), (b"retry-after-ms", pause))
        return (_should_retry(False),)
    if isinstance(error, NotApplied):
        return _verdict_headers(error)
    if isinstance(error, OutcomeUnknown):
        return (_should_retry(repeatable), _RETRY_AFTER)
    if isinstance(error, Unavailable):
        return (_RETRY_AFTER,)
    if isinstance(error, Unauthenticated):
        return ((b"www-authenticate", b'Basic realm="cloister"'),)
    if isinstance(error, MethodNotAllowed):
        return ((b"allow", ", ".join(error.allowed).encode()),)
    if isinstance(error, TooLarge):
        # The rest of the body is still coming and nobody will read it.
        return ((b"connection", b"close"),)
    return ()


def _verdict_headers(error: NotApplied) -> Headers:
    headers = [
        (NOT_APPLIED_HEADER.encode(), error.verdict.value.encode()),
        _RETRY_AFTER,
    ]
    if error.epoch is not None:
        headers.append((EPOCH_HEADER.encode(), str(error.epoch).encode()))
    if error.moved_to is not None:
        headers.append((MOVED_TO_HEADER.encode(), error.moved_to.encode()))
    return tuple(headers)
