"""The emulator's HTTP server: OpenAI's chat completions, a model list, and its own ledger."""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.typedefs import Handler, Middleware
from pydantic import JsonValue, ValidationError

from llamaduo.api_keys import KeyFile
from llamaduo.http_api import guarded
from services.emulator import wire
from services.emulator.answers import Answer, answer, tokens
from services.emulator.batches import BatchAsked, Batches
from services.emulator.chat import ChatRequest
from services.emulator.draws import digest
from services.emulator.faults import Fault, caller_of, draw_fault, spoil
from services.emulator.ledger import Ledger
from services.emulator.rate_limit import RateLimit
from services.emulator.settings import EmulatorSettings

_LONGEST_KEY = 255  # characters of an idempotency key
SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"


def _refuse(
    status: int, body: wire.Body, *, headers: dict[str, str] | None = None, close: bool = False
) -> web.Response:
    response = web.json_response(body, status=status, headers=headers)
    if close:
        response.force_close()
    return response


def _invalid(problem: ValidationError) -> wire.Body:
    first = problem.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return wire.error(first["msg"], "invalid_request_error", param=where or None)


def _no_such(what: str) -> wire.Body:
    return wire.error(f"{what} not found.", "invalid_request_error", "not_found")


class _Emulator:
    """The handlers and what they share. `clock` gives seconds and only ever goes forward."""

    def __init__(self, settings: EmulatorSettings, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._ledger = ledger
        self._limit = RateLimit(settings.rpm, clock)
        self._batches = Batches(
            self._in_batch,
            time.time,
            takes_s=settings.batch_ms / 1000,
            expired=settings.batch_expired_rate,
            seed=settings.seed,
        )

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response(wire.model_list(self._settings.model_name))

    async def ledger(self, _request: web.Request) -> web.Response:
        return web.json_response(self._ledger.view().model_dump())

    async def reset(self, _request: web.Request) -> web.Response:
        self._ledger.reset()
        return web.json_response({"status": "ok"})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        key = request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            message = f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters."
            return _refuse(400, wire.error(message, "invalid_request_error"))
        asked = self._checked(body)
        if not isinstance(asked, ChatRequest):
            return _refuse(*asked)
        return await self._reply(request, asked, key, caller_of(key, body))

    def _checked(self, body: bytes) -> ChatRequest | tuple[int, wire.Body]:
        """The request, or status and body of its refusal."""
        try:
            asked = ChatRequest.model_validate_json(body)
        except ValidationError as problem:
            return 400, _invalid(problem)
        if asked.model != self._settings.model_name:
            message = f"The model `{asked.model}` does not exist or you do not have access to it."
            return 404, wire.error(message, "invalid_request_error", "model_not_found", "model")
        return asked

    def _in_batch(self, key: str, body: JsonValue) -> tuple[int, wire.Body]:
        """One request of a batch: no limit on requests, no stream."""
        content = json.dumps(body).encode()
        asked, caller = self._checked(content), caller_of(key, content)
        if not isinstance(asked, ChatRequest):
            return asked
        arrival = self._ledger.arrive(key, caller)
        fault = draw_fault(self._settings.fault_rates(), self._settings.seed, caller, arrival)
        if fault == "server_error":
            self._ledger.settle(key, 500)
            return 500, wire.error(SERVER_ERROR, "server_error")
        said, used = self._said(asked, key, caller, arrival, fault, batched=True)
        return 200, wire.completion(said, digest(caller, arrival)[:24], asked.model, asked.n, used)

    def _said(
        self, asked: ChatRequest, key: str | None, caller: str, arrival: int, fault: Fault, *, batched: bool = False
    ) -> tuple[Answer, wire.Body]:
        """The answer, as the fault leaves it, and its usage; both are in the ledger then."""
        good = answer(asked)
        said = spoil(fault, good, self._settings.seed, caller, arrival)
        prompt_tokens, completion_tokens = tokens(asked.prompt()), tokens(said.text) * asked.n
        self._ledger.settle(
            key, 200, prompt_tokens, completion_tokens, fault="" if said == good else fault, batched=batched
        )
        return said, wire.usage(prompt_tokens, completion_tokens)

    async def upload(self, request: web.Request) -> web.Response:
        try:
            form = await request.post()
        except (BadHttpMessage, ValueError, LookupError, AssertionError):
            # What a form from strangers can be, aiohttp says in many ways.
            return _refuse(400, wire.error("The body is no form.", "invalid_request_error"))
        file = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(file, web.FileField):
            return _refuse(400, wire.error("A file with purpose `batch` is asked for.", "invalid_request_error"))
        return web.json_response(self._batches.keep_file(file.file.read()))

    async def content(self, request: web.Request) -> web.Response:
        content = self._batches.file(request.match_info["name"])
        return web.Response(body=content) if content is not None else _refuse(404, _no_such("File"))

    async def create_batch(self, request: web.Request) -> web.Response:
        try:
            made = self._batches.create(BatchAsked.model_validate_json(await request.read()))
        except ValidationError as problem:
            return _refuse(400, _invalid(problem))
        return web.json_response(made) if made is not None else _refuse(400, _no_such("File"))

    async def list_batches(self, _request: web.Request) -> web.Response:
        return web.json_response(self._batches.all())

    async def batch(self, request: web.Request) -> web.Response:
        seen = self._batches.look(request.match_info["name"])
        return web.json_response(seen) if seen is not None else _refuse(404, _no_such("Batch"))

    async def cancel_batch(self, request: web.Request) -> web.Response:
        seen = self._batches.cancel(request.match_info["name"])
        if seen is None:
            return _refuse(409, wire.error("There is no batch that could be cancelled.", "invalid_request_error"))
        return web.json_response(seen)

    async def _reply(
        self, request: web.Request, asked: ChatRequest, key: str | None, caller: str
    ) -> web.StreamResponse:
        settings = self._settings
        arrival = self._ledger.arrive(key, caller)
        fault = draw_fault(settings.fault_rates(), settings.seed, caller, arrival)
        if settings.refused_text and settings.refused_text in asked.prompt():
            fault = "refused"
        wait = self._limit.admit()
        if wait is None and fault == "rate_limited":
            wait = settings.retry_after_s
        if wait is not None:
            self._ledger.settle(key, 429)
            message = f"Rate limit reached for requests. Please try again in {wait}s."
            limited = wire.error(message, "requests", "rate_limit_exceeded")
            return _refuse(429, limited, headers={"Retry-After": str(wait)})
        if settings.latency_ms:
            await asyncio.sleep(settings.latency_ms / 1000)
        if fault == "server_error":
            self._ledger.settle(key, 500)
            return _refuse(500, wire.error(SERVER_ERROR, "server_error"))

        said, used = self._said(asked, key, caller, arrival, fault)
        answer_id = digest(caller, arrival)[:24]
        if not asked.stream:
            return web.json_response(wire.completion(said, answer_id, asked.model, asked.n, used))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        for event in wire.stream(said, answer_id, asked.model, asked.n, used, include_usage=with_usage):
            await response.write(event.encode())
        await response.write_eof()
        return response


def _check_key(settings: EmulatorSettings) -> Middleware:
    """A middleware that lets only callers with a key in, where any is set; `/healthz` is open to all."""
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    keys = KeyFile(settings.api_keys_file) if settings.api_keys_file is not None else None
    open_to_all = key is None and keys is None

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        allowed = open_to_all or (keys is not None and keys.owner_of(given) is not None)
        if key is not None:
            allowed = allowed or hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key.encode())
        if not allowed and request.path != "/healthz":
            message = "Incorrect API key provided."
            refusal = wire.error(message, "invalid_request_error", "invalid_api_key")
            return _refuse(401, refusal, close=True)
        return await handler(request)

    return check


def make_app(
    settings: EmulatorSettings, ledger: Ledger, clock: Callable[[], float] = time.monotonic
) -> web.Application:
    """The server as an aiohttp application. The caller owns and closes the ledger."""
    emulator = _Emulator(settings, ledger, clock)
    routes = [
        web.get("/healthz", emulator.health),
        web.get("/v1/models", emulator.models),
        web.post("/v1/chat/completions", emulator.chat),
        web.post("/v1/files", emulator.upload),
        web.get("/v1/files/{name}/content", emulator.content),
        web.post("/v1/batches", emulator.create_batch),
        web.get("/v1/batches", emulator.list_batches),
        web.get("/v1/batches/{name}", emulator.batch),
        web.post("/v1/batches/{name}/cancel", emulator.cancel_batch),
        web.get("/emulator/ledger", emulator.ledger),
        web.post("/emulator/reset", emulator.reset),
    ]
    return guarded(routes, largest_body=settings.max_body_bytes, further=[_check_key(settings)])


async def start(
    app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> tuple[web.AppRunner, int]:
    """Listens; returns the runner (its `cleanup()` stops the server) and the port (a free one for 0)."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=tls)
    await site.start()
    return runner, int(runner.addresses[0][1])
