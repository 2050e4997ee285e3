"""Writes an OpenAPI document for each HTTP API of ours into docs/contract/http, from its models where it has some.

Use: python3 -m deploy.http_contract
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from services.emulator.batches import BatchAsked
from services.emulator.chat import ChatRequest
from services.emulator.ledger import LedgerView

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "contract" / "http"
JSON = "application/json"
Document = dict[str, Any]

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
WHAT = {
    400: "the request cannot be used",
    401: "a key is asked for",
    404: "there is no such thing",
    405: "the path has no such method",
    409: "it cannot be done now",
    413: "the body is too large",
    429: "too many requests",
    500: "the server failed",
    502: "the engine failed",
    503: "not now: Retry-After says when",
}


def ref(name: str) -> Document:
    """A schema among the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def answer(schema: Document, what: str = "done", kind: str = JSON) -> Document:
    """A response with a body."""
    return {"description": what, "content": {kind: {"schema": schema}}}


def responses(good: Document, *statuses: int) -> Document:
    """200, and these refusals; each path refuses other methods."""
    bad = {str(status): answer(ref("Error"), WHAT[status]) for status in (*statuses, 405)}
    return {"200": good, **bad}


def body(schema: Document, kind: str = JSON) -> Document:
    """A body that must be there."""
    return {"required": True, "content": {kind: {"schema": schema}}}


def thing(*required: str, **more: Document) -> Document:
    """An object with these keys, of any kind unless it is said."""
    return {"type": "object", "required": list(required), "properties": more}


def document(title: str, paths: Document, *models: type[BaseModel], keys: bool, **schemas: Document) -> Document:
    """A whole document. With `keys` a key can be asked for."""
    components: Document = {"Error": ERROR, **schemas}
    for model in models:
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= made.pop("$defs", {})
        components[model.__name__] = made
    found: Document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}, {}]
    return found


def health() -> Document:
    """The API of every service."""
    ready = thing("ready", "problems", ready={"type": "boolean"})
    alive = thing("alive", "service", "replica", alive={"const": True})
    plain = {"schema": {"type": "string"}}
    metrics = {"description": "Prometheus", "content": {"text/plain": plain}}
    paths = {
        "/healthz": {"get": {"responses": responses(answer(alive, "it lives"))}},
        "/readyz": {"get": {"responses": responses(answer(ready, "ready")) | {"503": answer(ready, "not ready")}}},
        "/metrics": {"get": {"responses": responses(metrics)}},
    }
    return document("Health of a LlamaDuo service", paths, keys=False)


COMPLETION = thing("choices", choices={"type": "array", "minItems": 1})
MODELS = thing("data", data={"type": "array", "items": thing("id", id={"type": "string"})})


def completed() -> Document:
    """An answer, whole or as server-sent events."""
    return {
        "description": "done",
        "content": {JSON: {"schema": ref("Completion")}, "text/event-stream": {}},
    }


def emulator() -> Document:
    """The stand-in for a service LLM."""
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    idempotency = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}
    upload = {
        "type": "object",
        "required": ["purpose", "file"],
        "properties": {"purpose": {"enum": ["batch"]}, "file": {"type": "string", "format": "binary"}},
    }
    batch = thing("id", "status", object={"const": "batch"})
    content = {"description": "the file", "content": {"application/octet-stream": {"schema": {"type": "string"}}}}
    chat = {
        "parameters": [idempotency],
        "requestBody": body(ref("ChatRequest")),
        "responses": responses(completed(), 400, 401, 404, 413, 429, 500),
    }
    paths = {
        "/healthz": {"get": {"security": [], "responses": responses(answer(thing("status")))}},
        "/v1/models": {"get": {"responses": responses(answer(ref("Models")), 401)}},
        "/v1/chat/completions": {"post": chat},
        "/v1/files": {
            "post": {
                "requestBody": body(upload, "multipart/form-data"),
                "responses": responses(answer(thing("id", "bytes")), 400, 401, 413),
            }
        },
        "/v1/files/{name}/content": {
            "get": {"parameters": named, "responses": responses(content, 401, 404)},
        },
        "/v1/batches": {
            "get": {"responses": responses(answer(thing("data")), 401)},
            "post": {
                "requestBody": body(ref("BatchAsked")),
                "responses": responses(answer(batch), 400, 401, 413),
            },
        },
        "/v1/batches/{name}": {"get": {"parameters": named, "responses": responses(answer(batch), 401, 404)}},
        "/v1/batches/{name}/cancel": {
            "post": {"parameters": named, "responses": responses(answer(batch), 401, 404, 409)},
        },
        "/emulator/ledger": {"get": {"responses": responses(answer(ref("LedgerView")), 401)}},
        "/emulator/reset": {"post": {"responses": responses(answer(thing("status")), 401)}},
    }
    models = (ChatRequest, BatchAsked, LedgerView)
    title = "LlamaDuo's stand-in for a service LLM"
    return document(title, paths, *models, keys=True, Completion=COMPLETION, Models=MODELS)


def inference() -> Document:
    """The served models. What is not named here goes to vLLM as it is."""
    number = {"type": ["integer", "null"], "minimum": 1, "maximum": 16}
    common: Document = {
        "model": {"type": "string", "minLength": 1},
        "n": number,
        "max_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "seed": {"type": "integer"},
        "stream": {"type": "boolean"},
    }
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
    }
    function = thing("name", name={"type": "string", "minLength": 1}, parameters={"type": "object"})
    tool = thing("type", "function", type={"const": "function"}, function=function)
    tools = {"type": "array", "items": tool}
    messages = {"type": "array", "minItems": 1, "items": message}
    chat = thing("model", "messages", **common, messages=messages, tools=tools)
    prompt = {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "maxItems": 64}]}
    plain = thing("model", "prompt", **common, prompt=prompt, best_of=number)
    generated = responses(completed(), 400, 401, 404, 413, 502, 503)
    well = {"description": "the engine answers"}
    paths = {
        "/health": {
            "get": {
                "security": [],
                "responses": {**responses(well), "503": {"description": "it does not"}},
            }
        },
        "/v1/models": {"get": {"responses": responses(answer(ref("Models")), 401, 502, 503)}},
        "/v1/chat/completions": {"post": {"requestBody": body(ref("Chat")), "responses": generated}},
        "/v1/completions": {"post": {"requestBody": body(ref("Prompted")), "responses": generated}},
    }
    schemas = {"Completion": COMPLETION, "Models": MODELS, "Chat": chat, "Prompted": plain}
    return document("Models that LlamaDuo serves", paths, keys=True, **schemas)


def documents() -> dict[str, Document]:
    """File name -> document."""
    return {"health.json": health(), "emulator.json": emulator(), "inference.json": inference()}


def render(made: Document) -> str:
    """A document as it stands in its file."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, made in documents().items():
        (FOLDER / name).write_text(render(made), "utf-8")


if __name__ == "__main__":
    main()
