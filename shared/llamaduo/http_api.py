"""What stands in front of each HTTP API of ours: keys, bounds, and errors that tell callers no more than they should.

Errors have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Collection, Iterable
from typing import Any, NoReturn

from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from llamaduo.api_keys import KeyFile
from llamaduo.nesting import is_deeper

log = logging.getLogger(__name__)

HEALTH_PATHS = ("/health", "/healthz", "/readyz", "/metrics")
"""Open to all: they say whether a service is well, and nothing of what it works on."""
DEEPEST = 64
"""Lists and objects in each other that a body may have."""
REQUEST_ID = "X-Request-ID"
_ANSWERING = web.RequestKey("answering", bool)


class BadBody(ValueError):
    """A request's body that cannot be used; the message is for whoever sent it."""


def guarded(
    routes: Iterable[web.RouteDef],
    *,
    largest_body: int,
    keys: KeyFile | None = None,
    further: Collection[Middleware] = (),
) -> web.Application:
    """An application that refuses bodies above this many bytes, and callers without a key where there are keys."""
    before = [errors_as_json] if keys is None else [errors_as_json, keys_asked_for(keys)]
    app = web.Application(middlewares=[*before, *further], client_max_size=largest_body)
    app.on_response_prepare.append(_note_answering)
    logging.getLogger("aiohttp.server").addFilter(_NO_HTTP)
    for route in routes:
        own = {**route.kwargs, "expect_handler": _go_on}
        app.router.add_routes([web.RouteDef(route.method, route.path, route.handler, own)])
    known = list(app.router.resources())
    app.router.add_route("*", "/{path:.*}", _none_of(known), expect_handler=_go_on)
    return app


def error_body(message: str, kind: str, code: str | int | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refused(status: int, message: str, code: str | int | None = None) -> web.Response:
    """A refusal that is the caller's to mend."""
    return web.json_response(error_body(message, "invalid_request_error", code), status=status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals of the server itself (path, method, size) as JSON. What nobody expected is logged under an id, and the
    caller is told that id alone.
    """
    try:
        return await handler(request)
    except BadBody as problem:
        return refused(400, str(problem))
    except web.HTTPRequestEntityTooLarge:
        answer = refused(413, f"the body is larger than {request.client_max_size} bytes", "body_too_large")
        # What is left of it is not waited for.
        answer.force_close()
        return answer
    except web.HTTPError as problem:
        answer = refused(problem.status, problem.reason)
        if allowed := problem.headers.get("Allow"):
            answer.headers["Allow"] = allowed
        answer.force_close()
        return answer
    except web.RequestPayloadError:
        return refused(400, "the body cannot be decoded")
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            return _cut_off(request)  # the caller has gone
        number = secrets.token_hex(8)
        log.exception("request %s, %s %s, failed", number, request.method, request.path)
        if request.get(_ANSWERING):
            return _cut_off(request)
        body = error_body(f"the server failed; request {number}", "server_error", "internal_error")
        return web.json_response(body, status=500, headers={REQUEST_ID: number})


def keys_asked_for(keys: KeyFile, open_paths: Collection[str] = HEALTH_PATHS) -> Middleware:
    """A middleware that lets in who shows a key as `Authorization: Bearer KEY`; all others get 401.

    Clients made for Azure show theirs as `api-key: KEY`.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in open_paths:
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer":
                shown = request.headers.get("api-key", "")
            if keys.owner_of(shown.strip()) is None:
                answer = refused(401, "This API asks for a key: Authorization: Bearer KEY.", "invalid_api_key")
                answer.headers["WWW-Authenticate"] = "Bearer"
                answer.force_close()
                return answer
        return await handler(request)

    return check


async def json_object(request: web.Request) -> dict[str, Any]:
    """A request's body, an object of JSON that any reader takes. BadBody where it is none, or too deeply nested.

    A body above the application's limit is refused by the application itself, with 413.
    """
    body = await request.read()
    try:
        found = json.loads(body, parse_constant=_no_number)
        # Half of a surrogate pair is no text: UTF-8 has no bytes for it. Nor is 1e999 a number that others can read.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadBody("the body must be JSON") from error
    if not isinstance(found, dict):
        raise BadBody("the body must be a JSON object")
    if is_deeper(found, DEEPEST):
        raise BadBody(f"the body is nested more than {DEEPEST} levels deep")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _none_of(known: Collection[web.AbstractResource]) -> Handler:
    """What answers for all other paths and methods. aiohttp's own answer to `Expect` there can fail."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        allowed: set[str] = set()
        for resource in known:
            allowed |= (await resource.resolve(request))[1]
        if allowed:
            raise web.HTTPMethodNotAllowed(request.method, sorted(allowed))
        raise web.HTTPNotFound

    return refuse


async def _go_on(request: web.Request) -> None:
    """Ask for the body that a client holds back; whatever else it expects is not promised."""
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        with contextlib.suppress(ConnectionError):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # These bytes are no part of the answer.
        request.writer.output_size = 0


class _NoHttp(logging.Filter):
    """Keeps what strangers send that is no HTTP from filling the log: they get a 400, and that is all."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (
            record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, web.RequestPayloadError))
        )


_NO_HTTP = _NoHttp()


async def _note_answering(request: web.Request, _: web.StreamResponse) -> None:
    request[_ANSWERING] = True


def _cut_off(request: web.Request) -> web.Response:
    """Break an answer off that has begun: a second one cannot follow, and an end would look like a whole one.

    What is returned reaches nobody.
    """
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
