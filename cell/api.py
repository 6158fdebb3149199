"""The tenant API: an ASGI application that authenticates, finds the endpoint, and answers.

Written against ASGI itself: a request of the hot path passes one dictionary per question (who,
which endpoint) and no framework. Every answer carries the request id; every error has the one form
of `answers`; whatever is not foreseen is a 500 without details, logged once.
"""

import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from cell.answers import Answer, Headers, answer_error, answer_failure
from cell.calls import Call, CellParts, ClientGone, Endpoint, Receive, Route
from cell.errors import ApiError, InvalidRequest, MethodNotAllowed, NotFound, Unavailable
from cell.metrics import RequestMetrics
from cell.signature import SIGNATURE_HEADER, SIGNED_HEADERS, Verifier
from cell.wire import PUBLIC_REQUEST_ID_HEADER, REQUEST_ID_HEADER

_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
_REQUEST_ID_IN: Final = REQUEST_ID_HEADER.encode()
_REQUEST_ID_OUT: Final = PUBLIC_REQUEST_ID_HEADER.encode()
_SIGNATURE: Final = SIGNATURE_HEADER.encode()
_CONTENT_TYPE: Final = (b"content-type", b"application/json")
_UNROUTED: Final = "unrouted"
_UNSEEN: Final = "the cell has lost its database for a moment; try again shortly"

log = logging.getLogger("cell.api")


class TenantApi:
    """The ASGI application of the cell's data path."""

    def __init__(
        self,
        parts: CellParts,
        routes: Iterable[Route],
        metrics: RequestMetrics,
        verifier: Verifier | None = None,
        connection: Callable[[], int | None] = lambda: 0,
    ) -> None:
        """Without a verifier, requests are taken from anybody who can reach the cell.

        `connection`: as of `HeadWatch`.
        """
        self._parts = parts
        self._metrics = metrics
        self._verifier = verifier
        self._connection = connection
        self._endpoints: dict[str, dict[str, Endpoint]] = {}
        for route in routes:
            shape, _ = split_path(route.path)
            self._endpoints.setdefault(shape, {})[route.method] = route.endpoint
        self._request_ids = itertools.count(1)
        self._request_id_prefix = os.urandom(6).hex()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Any) -> None:
        started_s = time.perf_counter()
        method: str = scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._request_id(headers)
        shape = _UNROUTED
        connection = self._connection()
        try:
            if self._verifier is not None:
                self._verifier.check(headers.get(_SIGNATURE), *_signed(scope, headers))
            # Credentials first: without them nothing is told, not even which paths exist.
            principal = await self._parts.directory.authenticate(headers.get(b"authorization"))
            path, ids = split_path(scope["raw_path"].decode("latin-1"))
            endpoint = self._find(path, method)
            shape = path
            query_string = scope["query_string"]
            call = Call(self._parts, principal, ids, headers, query_string, receive, started_s)
            answer = await endpoint(call)
        except ApiError as error:
            answer = answer_error(error, repeatable=_is_repeatable(method, headers))
        except ClientGone:
            return
        except Exception:
            fields = {"request_id": request_id.decode(), "method": method, "route": shape}
            log.exception("request failed", extra=fields)
            answer = answer_failure(repeatable=_is_repeatable(method, headers))
        if method == "GET" and (connection is None or self._connection() != connection):
            # Of a database that nobody has looked at yet, or that was restored meanwhile: even
            # what is not there may be missing only.
            answer = answer_error(Unavailable(_UNSEEN), repeatable=True)
        head = _head_fields(answer, request_id)
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body})
        self._metrics.observe(method, shape, answer.status, time.perf_counter() - started_s)

    def _request_id(self, headers: dict[bytes, bytes]) -> bytes:
        """The router's id of the request, or one of ours where it came without."""
        given = headers.get(_REQUEST_ID_IN)
        if given is not None and _REQUEST_ID.fullmatch(given) is not None:
            return given
        return f"{self._request_id_prefix}-{next(self._request_ids):x}".encode()

    def _find(self, shape: str, method: str) -> Endpoint:
        endpoints = self._endpoints.get(shape)
        if endpoints is None:
            raise NotFound("no such path", code="not_found")
        endpoint = endpoints.get(method)
        if endpoint is None:
            raise MethodNotAllowed(f"{method} is not possible here", tuple(sorted(endpoints)))
        return endpoint


def _head_fields(answer: Answer, request_id: bytes) -> Headers:
    return (
        _CONTENT_TYPE,
        (b"content-length", b"%d" % len(answer.body)),
        (_REQUEST_ID_OUT, request_id),
        *answer.headers,
    )


def _signed(scope: dict[str, Any], headers: dict[bytes, bytes]) -> Iterator[bytes]:
    """What a router signs of a head, in its order."""
    yield scope["method"].encode()
    yield scope["raw_path"]
    yield scope["query_string"]
    for name in SIGNED_HEADERS:
        yield headers.get(name, b"")


def _is_repeatable(method: str, headers: dict[bytes, bytes]) -> bool:
    """Only POST creates something anew, and not where its key names what was created."""
    return method != "POST" or b"idempotency-key" in headers


def split_path(path: str) -> tuple[str, tuple[str, ...]]:
    """A path as its shape and its ids: after `/api` literal and variable segments alternate.

    `/api/ledgers/7/versions` is of shape `ledgers/{}/versions`. Ids are decoded once, after the
    split: an encoded slash is part of its id.
    """
    segments = path.split("/")
    if len(segments) < 3 or segments[0] or segments[1] != "api":
        return _UNROUTED, ()
    count = len(segments)
    if count == 3:
        return segments[2], ()
    ids = segments[3::2]
    if count == 4:
        shape = segments[2] + "/{}"
    else:
        segments[3::2] = ["{}"] * len(ids)
        shape = "/".join(segments[2:])
    return shape, tuple([_decode(id) if "%" in id else id for id in ids])


def _decode(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest("the path is not UTF-8") from exc
    if "\0" in text:
        raise InvalidRequest("the path holds the character \\0")
    return text
