"""The OpenAPI document, made from the same rows as the routes: they cannot differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast_contract.limits import JSON_BODY_BYTES_MAX
from holdfast_contract.protocol.http import Listing, Problem
from holdfast_server.api.rights import Right, role_for
from holdfast_server.api.routes import (
    Audience,
    ListingOf,
    RawAnswer,
    RawBody,
    Route,
    StreamedBody,
)

_PATH_PARAMETER = re.compile(r"{(\w+)}")
_SCHEMES = {
    Audience.PEOPLE: "token",
    Audience.AGENT: "connectionToken",
    Audience.NEWCOMER: "enrolmentToken",
}
_SCHEME_TEXTS = {
    "token": "a token from admin.token or `holdfast token create`",
    "connectionToken": "the token that `welcome` brought on the control channel",
    "enrolmentToken": "a one-time token from `holdfast enrol-token create`",
}


def openapi_document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of `routes`."""
    types = _json_types(routes)
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for route in routes:
        operation = _operation(route, schema_of)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version,
            "description": "Backups: everything that the command `holdfast` does goes through /v1.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": text}
                for name, text in _SCHEME_TEXTS.items()
            },
        },
    }


def _json_types(routes: Sequence[Route]) -> list[Any]:
    found: list[Any] = [Problem, Listing]
    for route in routes:
        for kind in (route.request, route.answer):
            if isinstance(kind, ListingOf):
                found.append(kind.row)
            elif _is_json(kind):
                found.append(kind)
    return list({id(kind): kind for kind in found}.values())


def _is_json(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, (RawBody, StreamedBody, RawAnswer, ListingOf))


def _operation(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [route.path.removeprefix("/").split("/")[-1 if route.path.count("/") == 1 else 1]],
        "parameters": _parameters(route),
        "responses": {
            str(route.status if route.answer is not None else 204): _answer(route, schema_of),
            "default": {
                "description": "what went wrong; `code` is stable (docs/protocol.md)",
                "content": {"application/problem+json": {"schema": schema_of[id(Problem)]}},
            },
        },
        "security": [{_SCHEMES[route.audience]: []}] if route.audience in _SCHEMES else [],
    }
    if route.right is not None:
        operation["description"] = _needs(route, route.right)
    if (body := _body(route, schema_of)) is not None:
        operation["requestBody"] = body
    return operation


def _needs(route: Route, right: Right) -> str:
    where = "not limited to domains" if route.is_of_server else "good for the domain"
    return f"Needs a token of the role {role_for(right)} or higher, {where}."


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    in_query = [
        {
            "name": parameter.name,
            "in": "query",
            "required": False,
            "description": parameter.summary,
            "schema": {"type": parameter.kind},
        }
        for parameter in route.query
    ]
    return in_path + in_query


def _body(route: Route, schema_of: dict[int, Any]) -> dict[str, Any] | None:
    kind = route.request
    if kind is None:
        return None
    if isinstance(kind, RawBody):
        schema = {"type": "string", "format": "binary", "maxLength": kind.bytes_max}
        return {"required": True, "content": {kind.media: {"schema": schema}}}
    if isinstance(kind, StreamedBody):
        return {"required": True, "content": {kind.media: {"schema": _BINARY}}}
    return {
        "required": True,
        "description": f"at most {JSON_BODY_BYTES_MAX} bytes",
        "content": {"application/json": {"schema": schema_of[id(kind)]}},
    }


_BINARY = {"type": "string", "format": "binary"}


def _answer(route: Route, schema_of: dict[int, Any]) -> dict[str, Any]:
    kind = route.answer
    if kind is None:
        return {"description": "done"}
    schema: dict[str, Any]
    if isinstance(kind, RawAnswer):
        schema = {"type": "object"} if kind.media == "application/json" else _BINARY
        return {"description": route.summary, "content": {kind.media: {"schema": schema}}}
    if isinstance(kind, ListingOf):
        rows = {"items": {"type": "array", "items": schema_of[id(kind.row)]}}
        schema = {"allOf": [schema_of[id(Listing)], {"properties": rows}]}
    else:
        schema = schema_of[id(kind)]
    return {"description": route.summary, "content": {"application/json": {"schema": schema}}}
