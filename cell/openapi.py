"""The description of the tenant API as an OpenAPI 3.1 document, made from the routes.

What is read and answered is described by the very structs and parameters that read and answer it;
what all routes have in common (credentials, errors, headers) is said here once. The document is
served like the rest of the API, to whoever has credentials: a router forwards nothing without.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, get_args, get_origin

import msgspec

from cell.answers import Answer, ErrorView, render
from cell.as_of import AS_OF_DATE, LOCK_VERSION
from cell.calls import Call, Route
from cell.pagination import PER_PAGE_MAX
from cell.parameters import BALANCE_OPERATORS, OPERATORS, Kind, Parameter

PATH: Final = "/api/openapi.json"

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_VARIABLE: Final = re.compile(r"{(\w+)}")
_TEXT: Final[Json] = {"type": "string"}
_UUID: Final[Json] = {"type": "string", "format": "uuid"}
_DATE: Final[Json] = {"type": "string", "format": "date"}
_TIMESTAMP: Final[Json] = {"type": "string", "format": "date-time"}
_INTEGER: Final[Json] = {"type": "string", "pattern": "^-?[0-9]{1,60}$"}
"""Text, as all of a query string: as a number it would lose digits on the way."""

_ALWAYS: Final = (400, 401, 421, 422, 429, 503)
"""Malformed, no credentials, not this cell's tenant, refused, overloaded, not now."""
_OF_BODY: Final = (413, 415)


def described(routes: Sequence[Route]) -> Route:
    """The route that answers the description of those routes and of itself."""

    async def retrieve(call: Call) -> Answer:
        return document()

    @functools.cache
    def document() -> Answer:
        return Answer(200, render(describe((*routes, own))))

    own = Route("GET", PATH, retrieve, "Describe this API", Json)
    return own


def describe(routes: Sequence[Route]) -> Json:
    """The document. Raises TypeError where a struct holds what JSON Schema cannot say."""
    views = [_shown(route) for route in routes if route.shows is not None]
    views += [route.deferred for route in routes if route.deferred is not None]
    bodies = [route.body for route in routes if route.body is not None]
    schemas, components = msgspec.json.schema_components(
        [*views, *bodies, ErrorView], schema_hook=_anything, ref_template=_REF
    )
    _close(components, schemas[: len(views)])
    by_type = dict(zip([*views, *bodies], schemas, strict=False))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    found = {
        "openapi": "3.1.0",
        "info": {"title": "Cloister Ledgers API", "version": version("cloister")},
        "security": [{"basic": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
    }
    return _shorten(found)


def _shorten(document: Json) -> Json:
    """Structs of the same name are told apart by their module; its package tells nothing."""
    shorter: Json = msgspec.json.decode(render(document).replace(b"cell.resources.", b""))
    return shorter


def _anything(kind: type) -> Json:
    if kind is not object:
        raise NotImplementedError
    return {"description": "Any value."}


def _shown(route: Route) -> Any:
    """The view of one object."""
    return get_args(route.shows)[0] if _is_list(route) else route.shows


def _is_list(route: Route) -> bool:
    return get_origin(route.shows) is list


def _close(components: Json, roots: Sequence[Any]) -> None:
    """Say of every object that is answered that it has no other keys than those described."""
    waiting = list(roots)
    seen = set()
    while waiting:
        for name in _references(waiting.pop()):
            if name not in seen:
                seen.add(name)
                schema = components[name]
                waiting.append(schema)
                if schema.get("type") == "object":
                    schema["additionalProperties"] = False
                    schema["required"] = list(schema["properties"])


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _operation(route: Route, schemas: Mapping[Any, Json]) -> Json:
    operation: Json = {
        "operationId": route.endpoint.__module__.rpartition(".")[2] + "_" + route.endpoint.__name__,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_headers(route), *_query_parameters(route)],
        "responses": {str(route.success): _response(route, schemas)}
        | {str(status): _refusal(status) for status in _refusals(route)},
    }
    if route.deferred is not None:
        operation["responses"][str(HTTPStatus.ACCEPTED.value)] = _queued(route, schemas)
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _refusals(route: Route) -> list[int]:
    found = {*_ALWAYS, *route.errors}
    if "{" in route.path:
        found.add(HTTPStatus.NOT_FOUND)
    if route.body is not None:
        found.update(_OF_BODY)
    if route.method == "POST":
        # The same idempotency key is in flight.
        found.add(HTTPStatus.CONFLICT)
    return sorted(found)


def _refusal(status: int) -> Json:
    schema = {"$ref": _REF.format(name=ErrorView.__name__)}
    return {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": schema}},
    }


def _response(route: Route, schemas: Mapping[Any, Json]) -> Json:
    response: Json = {"description": route.summary}
    if route.shows is None:
        return response
    schema = schemas[_shown(route)]
    if _is_list(route):
        schema = {"type": "array", "maxItems": PER_PAGE_MAX, "items": schema}
        response["headers"] = {
            "X-Per-Page": {"required": True, "schema": {"type": "integer"}},
            "X-After-Cursor": {
                "description": "Where to go on; absent on the last page.",
                "schema": _TEXT,
            },
        }
    response["content"] = {"application/json": {"schema": schema}}
    return response


def _queued(route: Route, schemas: Mapping[Any, Json]) -> Json:
    """What is answered where the client does not wait for the effect."""
    return {
        "description": "Queued durably, as `Prefer: respond-async` asked; applied soon afterwards.",
        "headers": {
            "Location": {
                "description": "The path to poll until what is there is no longer pending.",
                "required": True,
                "schema": {"type": "string", "format": "uri-reference"},
            },
            "Preference-Applied": {"required": True, "schema": {"const": "respond-async"}},
        },
        "content": {"application/json": {"schema": schemas[route.deferred]}},
    }


def _path_parameters(route: Route) -> Iterator[Json]:
    for name in _VARIABLE.findall(route.path):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _headers(route: Route) -> Iterator[Json]:
    if route.method == "POST":
        schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"}
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key, the same effect and the same answer, for 24 hours.",
            "schema": schema,
        }
    if route.deferred is not None:
        yield {
            "name": "Prefer",
            "in": "header",
            "description": "With `respond-async` answered 202 once it is queued durably. Other "
            "preferences are ignored (RFC 7240).",
            "schema": _TEXT,
            "example": "respond-async",
        }


def _query_parameters(route: Route) -> Iterator[Json]:
    for parameter in route.parameters:
        yield {"in": "query", **_QUERY[parameter.kind](parameter)}
        if parameter.kind in _ONE_OF_SEVERAL:
            yield {"in": "query", **_ONE_OF_SEVERAL[parameter.kind](parameter)}


def _single(schema: Json) -> Any:
    return lambda parameter: {"name": parameter.name, "schema": schema}


def _one_of(parameter: Parameter) -> Json:
    return {"name": parameter.name, "schema": {"enum": [str(word) for word in parameter.choices]}}


def _several(schema: Json) -> Any:
    def render(parameter: Parameter) -> Json:
        words = [str(word) for word in parameter.choices]
        items = schema | ({"enum": words} if words else {})
        return {"name": f"{parameter.name}[]", "schema": {"type": "array", "items": items}}

    return render


def _keyed(schema: Json, keys: Sequence[str] = ()) -> Any:
    def render(parameter: Parameter) -> Json:
        known = [*keys, *map(str, parameter.choices)]
        of_keys: Json = {"properties": dict.fromkeys(known, schema), "additionalProperties": False}
        return {
            "name": parameter.name,
            "style": "deepObject",
            "explode": True,
            "schema": {
                "type": "object",
                **(of_keys if known else {"additionalProperties": schema}),
            },
        }

    return render


def _keyed_times(parameter: Parameter) -> Json:
    described: Json = _keyed(_TIMESTAMP)(parameter)
    others = {AS_OF_DATE: _DATE, LOCK_VERSION: _INTEGER}
    known = described["schema"]["properties"]
    known.update({key: schema for key, schema in others.items() if key in known})
    return described


def _order(parameter: Parameter) -> Json:
    described: Json = _keyed({"enum": ["asc", "desc"]})(parameter)
    described["schema"]["maxProperties"] = 1
    return described


_QUERY: Final[Mapping[Kind, Any]] = {
    Kind.TEXT: _single(_TEXT),
    Kind.TEXTS: _several(_TEXT),
    Kind.ID: _single(_UUID),
    Kind.IDS: _several(_UUID),
    Kind.CHOICE: _one_of,
    Kind.CHOICES: _several(_TEXT),
    Kind.FLAG: _single({"type": "boolean"}),
    Kind.COUNT: _single({"type": "integer", "minimum": 1}),
    Kind.INTEGER: _single(_INTEGER),
    Kind.TIME: _single(_TIMESTAMP),
    Kind.KEYED_TIMES: _keyed_times,
    Kind.TIMES: _keyed(_TIMESTAMP, tuple(OPERATORS)),
    Kind.DAYS: _keyed(_DATE, tuple(OPERATORS)),
    Kind.INTEGERS: _keyed(_INTEGER, tuple(OPERATORS)),
    Kind.BALANCES: _keyed(_INTEGER, tuple(BALANCE_OPERATORS)),
    Kind.METADATA: _keyed(_TEXT),
    Kind.ORDER: _order,
}
_ONE_OF_SEVERAL: Final[Mapping[Kind, Any]] = {
    Kind.TEXTS: _single(_TEXT),
    Kind.IDS: _single(_UUID),
    Kind.CHOICES: _one_of,
}
"""What takes several values takes one without the brackets, too."""
