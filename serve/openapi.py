"""The API described: an OpenAPI 3.1 document made of `serve.api`'s models, and the same as a page to read."""

import dataclasses
import json
from importlib import metadata
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve import api

SCHEMAS = "#/components/schemas/"


@dataclasses.dataclass(frozen=True)
class Way:
    """One thing to ask, and what comes back."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None = None  # None: text
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None  # of a stream
    refusals: tuple[int, ...] = ()


ASKING = (400, 404, 408, 413, 429, 500, 503, 504)
WAYS = (
    Way(
        "post",
        "/v1/chat/completions",
        "answers to a conversation",
        api.ChatCompletion,
        api.ChatRequest,
        api.ChatChunk,
        ASKING,
    ),
    Way(
        "post",
        "/v1/completions",
        "what follows a text",
        api.Completion,
        api.CompletionRequest,
        api.CompletionChunk,
        ASKING,
    ),
    Way(
        "post",
        "/tokenize",
        "token ids of a text or a conversation",
        api.Tokens,
        api.TokenizeRequest,
        None,
        (400, 404, 408, 413),
    ),
    Way("get", "/v1/models", "the model that is served", api.Models),
    Way("get", "/v1/models/{model}", "the same by its name", api.Model, refusals=(404,)),
    Way("get", "/server_info", "what serves it, and the tokens a step commits on average", api.ServerInfo),
    Way("get", "/metrics", "counters, gauges and latencies for Prometheus"),
    Way("get", "/health", "200 while it serves", api.Health),
)


def describe(name: str) -> dict[str, Any]:
    """The document of a server of `name`."""
    inputs = [way.request for way in WAYS if way.request]
    outputs = [model for way in WAYS for model in (way.answer, way.chunk) if model] + [api.Error]
    kinds = [(model, "validation") for model in inputs] + [(model, "serialization") for model in outputs]
    _, schemas = models_json_schema(kinds, ref_template=SCHEMAS + "{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for way in WAYS:
        paths.setdefault(way.path, {})[way.method] = _operation(way)
    info = {"title": f"wideblock: {name}", "version": metadata.version("wideblock")}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas["$defs"]}}


def _operation(way: Way) -> dict[str, Any]:
    def as_json(model: type[BaseModel]) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": SCHEMAS + model.__name__}}}

    content: dict[str, Any] = as_json(way.answer) if way.answer else {"text/plain": {"schema": {"type": "string"}}}
    if way.chunk:
        piece = {"contentMediaType": "application/json", "contentSchema": {"$ref": SCHEMAS + way.chunk.__name__}}
        data = {"type": "string", "anyOf": [{"const": "[DONE]"}, piece]}
        event = {"type": "object", "required": ["data"], "properties": {"data": data}}
        content["text/event-stream"] = {"schema": event}
    responses = {"200": {"description": way.summary, "content": content}}
    responses |= {str(code): {"description": "refused", "content": as_json(api.Error)} for code in way.refusals}
    found: dict[str, Any] = {"summary": way.summary, "responses": responses}
    if way.request:
        found["requestBody"] = {"required": True, "content": as_json(way.request)}
    if "{model}" in way.path:
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found


def listing(described: dict[str, Any]) -> str:
    """A page of what may be asked, field by field."""
    from jinja2 import Environment, PackageLoader

    schemas = described["components"]["schemas"]
    ways = []
    for path, methods in described["paths"].items():
        for method, way in methods.items():
            body = way.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            fields = schemas[body["$ref"].removeprefix(SCHEMAS)]["properties"] if body else {}
            ways.append(
                (method.upper(), path, way["summary"], [(name, *_said(field)) for name, field in fields.items()])
            )
    template = Environment(loader=PackageLoader("serve", ""), autoescape=True).get_template("docs.html.jinja")
    return template.render(title=described["info"]["title"], ways=ways)


def _said(field: dict[str, Any]) -> tuple[str, str]:
    """What a field holds, and its description."""
    kinds = [_kind(option) for option in field.get("anyOf", [field])]
    return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null")), field.get("description", "")


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "only " + ", ".join(map(json.dumps, schema["enum"]))
    if "$ref" in schema:
        return schema["$ref"].removeprefix(SCHEMAS)
    if "items" in schema:
        return f"list of {_kind(schema['items'])}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]}" for key, word in bounds.items() if key in schema]
    return " ".join([schema.get("type", "anything"), *limits])
