"""OpenAI's own forms: errors, and what is read of a request."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from llamaduo.nesting import is_deeper

DEEPEST = 200


class BadRequest(Exception):
    """A request that nobody could answer; `param` is the field that is wrong."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def error_body(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    *,
    code: str | None = None,
    param: str | None = None,
) -> web.Response:
    """The same as an answer."""
    return web.json_response(error_body(message, kind, code=code, param=param), status=status)


def error_event(message: str) -> bytes:
    """An error in the midst of a stream; OpenAI's clients raise it."""
    return b"data: " + json.dumps(error_body(message, "server_error", code="upstream_broke_off")).encode() + b"\n\n"


def asked(body: bytes, deployment: str | None = None) -> dict[str, Any]:
    """The request's JSON object, with its model; Azure's clients name that in the path.

    BadRequest says what is wrong.
    """
    try:
        read = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise BadRequest("The body is not JSON.") from problem
    if not isinstance(read, dict):
        raise BadRequest("The body must be a JSON object.")
    if is_deeper(read, DEEPEST):
        raise BadRequest(f"The body is nested too deeply: {DEEPEST} levels at most.")
    if deployment is not None:
        read["model"] = deployment
    if not isinstance(read.get("model"), str) or not read["model"]:
        raise BadRequest("You must provide a model parameter.", "model")
    return read


def is_stream(content_type: str) -> bool:
    """Whether an answer comes as server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"
