"""/v1/openapi.json: the interface described by the same table and types that serve it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

import depalma
from depalma.api.context import Api
from depalma.api.problems import ProblemView
from depalma.api.route import Mode, Route

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM = "application/problem+json"


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the public routes."""
    public = [route for route in routes if not route.path.startswith("/internal")]
    types = {route.returns for route in public if route.returns is not None}
    types |= {route.body.type for route in public if route.body is not None}
    ordered = [ProblemView, *sorted(types, key=lambda type_: type_.__name__)]
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in public:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Depalma", "version": depalma.__version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    answer = {"application/json": {"schema": schema_of[route.returns]}} if route.returns else {
        "application/octet-stream": _BYTES
    }  # fmt: skip
    operation: dict[str, Any] = {
        "summary": route.summary,
        "description": f"Answered {route.mode.value}.",
        "parameters": _parameters(route),
        "responses": {
            str(route.status): {"description": "done", "content": answer},
            "default": {"description": "a problem", "content": {_PROBLEM: {"schema": schema_of[ProblemView]}}},
        },
    }
    if route.body is not None:
        schema = {"schema": schema_of[route.body.type]}
        content = {"application/json": schema, "application/msgpack": schema}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.raw_body:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": _BYTES}}
    if not route.access:
        operation["security"] = []
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    text = {"type": "string"}
    inside = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    query = [{"name": name, "in": "query", "required": False, "schema": text} for name in sorted(route.query)]
    headers = [("Idempotency-Key", text), ("Depalma-Seen", {"type": "integer"})] if route.mode is Mode.WRITE else []
    key = [{"name": name, "in": "header", "required": False, "schema": schema} for name, schema in headers]
    return [*inside, *query, *key]


async def openapi(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives the OpenAPI document."""
    return api.reply(request, document(api.routes))


ROUTES = (Route("GET", "/v1/openapi.json", openapi, Mode.LOCAL, "This document"),)
