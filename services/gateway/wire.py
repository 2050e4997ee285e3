"""OpenAI's own forms: errors, and what is read of a request."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from llamaduo.http_api import error_body, json_object


class BadRequest(Exception):
    """A request that nobody could answer; `param` is the field that is wrong."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


def error(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    *,
    code: str | None = None,
    param: str | None = None,
) -> web.Response:
    """The same as an answer."""
    return web.json_response(error_body(message, kind, code, param), status=status)


def error_event(message: str) -> bytes:
    """An error in the midst of a stream; OpenAI's clients raise it."""
    return b"data: " + json.dumps(error_body(message, "server_error", "upstream_broke_off")).encode() + b"\n\n"


async def asked(request: web.Request) -> tuple[bytes, dict[str, Any]]:
    """The request's body, and the JSON object that it is, with its model; Azure's clients name that in the path.

    BadRequest or BadBody says what is wrong.
    """
    read = await json_object(request)
    if (deployment := request.match_info.get("deployment")) is not None:
        read["model"] = deployment
    if not isinstance(read.get("model"), str) or not read["model"]:
        raise BadRequest("You must provide a model parameter.", "model")
    return await request.read(), read


def is_stream(content_type: str) -> bool:
    """Whether an answer comes as server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"
