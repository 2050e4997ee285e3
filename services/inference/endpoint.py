"""The OpenAI API for others, in front of vLLM: the same paths and answers, with vLLM's traps closed.

Adapters cannot be loaded or unloaded from here, what ends vLLM's engine is refused, and each request takes its
place in the engine's order of base and adapter requests. Tools are put into words and calls taken out of them.
"""

from __future__ import annotations

import json
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from llamaduo.api_keys import KeyFile
from llamaduo.errors import RetryableError
from llamaduo.http_api import REQUEST_ID, error_body, guarded, json_object, refused
from llamaduo.masking import masked
from llamaduo.tool_calls import ToolWording
from services.inference.engine import EngineNotReady
from services.inference.tool_requests import BadToolRequest, answered, as_stream, asked, needs_tools
from services.inference.vllm_client import BROKEN, VllmClient

log = logging.getLogger(__name__)

LARGEST_BODY = 4 * 1024 * 1024
"""Bytes of a request, unless it is told otherwise."""
_MOST_CHOICES = 16
_MOST_PROMPTS = 64
_CHAT = "/v1/chat/completions"
_GENERATING = (_CHAT, "/v1/completions")
_PASSED_BACK = ("Content-Type", "Cache-Control")


class Places(Protocol):
    """Where a request gets its place; the engine."""

    def request_place(
        self, model: str, *, wait_s: float | None = None
    ) -> AbstractAsyncContextManager[VllmClient]: ...

    def client_now(self) -> VllmClient: ...

    def serves(self, model: str) -> bool: ...

    def tool_wording(self, model: str) -> ToolWording: ...

    def healthy(self) -> bool: ...


class Endpoint:
    """Listens on `host` and `port` (0: a free one, known after `start`); with `keys`, for their owners alone.

    A body of more than `largest_body` bytes is refused.
    """

    def __init__(
        self,
        engine: Places,
        host: str,
        port: int,
        *,
        keys: KeyFile | None = None,
        largest_body: int = LARGEST_BODY,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._engine, self._tls = engine, tls
        self._keys, self._largest_body = keys, largest_body
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        host = "127.0.0.1" if self._host in ("", "0.0.0.0", "::") else self._host  # noqa: S104
        return f"{'http' if self._tls is None else 'https'}://{host}:{self._port}/v1"

    async def start(self) -> None:
        if self._runner is not None:
            return
        routes = [
            web.get("/health", self._health),
            web.get("/v1/models", self._models),
            *(web.post(path, self._generate) for path in _GENERATING),
        ]
        app = guarded(routes, largest_body=self._largest_body, keys=self._keys)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port, ssl_context=self._tls)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = int(runner.addresses[0][1])

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._engine.healthy() else 503)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        try:
            client = self._engine.client_now()
            async with client.session.get(f"{client.url}{request.path}") as answer:
                text = await answer.text()
                if answer.status != 200:
                    return _failed(answer.status, text)
                found = json.loads(text)
        except (RetryableError, *BROKEN) as error:
            return _unavailable(error)
        # Where the files of a model lie is nobody's business.
        shown = [{key: value for key, value in one.items() if key != "root"} for one in found["data"]]
        return web.json_response({**found, "data": shown})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await json_object(request)
        model = body.get("model")
        if not isinstance(model, str):
            return refused(400, "the body must be a JSON object with a model's name")
        if reason := refusal(body):
            return refused(400, reason)
        if not self._engine.serves(model):
            message = "this model is not served here; GET /v1/models lists what is"
            return refused(404, message, "model_not_found")
        with_tools = request.path == _CHAT and needs_tools(body)
        try:
            sent = asked(body, self._engine.tool_wording(model)) if with_tools else body
            async with self._engine.request_place(model, wait_s=0) as client:
                if with_tools:
                    return await _answer_whole(client, request, body, sent)
                return await _forward(client, request, sent)
        except BadToolRequest as error:
            return refused(400, str(error))
        except (RetryableError, *BROKEN) as error:
            return _unavailable(error)


def refusal(body: Mapping[str, Any]) -> str | None:
    """Why this request must not reach vLLM; None where it may.

    Log-probabilities of the prompt end the engine when an adapter is used in a batch with others. One request must
    not be the work of hundreds: what it asks for is bounded, as its body is.
    """
    for key in ("n", "best_of"):
        wanted = body.get(key)
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int)):
            return f"{key} must be a whole number"
        if wanted is not None and not 1 <= wanted <= _MOST_CHOICES:
            return f"{key} must be from 1 to {_MOST_CHOICES}"
    prompts = body.get("prompt")
    if isinstance(prompts, list) and not _one_prompt(prompts) and len(prompts) > _MOST_PROMPTS:
        return f"a request has {_MOST_PROMPTS} prompts at most"
    if body.get("prompt_logprobs") is not None:
        return "prompt_logprobs is not served here: with adapters it ends vLLM's engine"
    if body.get("echo") and body.get("logprobs") is not None:
        return "echo with logprobs is not served here: with adapters it ends vLLM's engine"
    return None


def _one_prompt(prompts: list[Any]) -> bool:
    """Whether this list is one prompt, of tokens."""
    return bool(prompts) and all(isinstance(one, int) for one in prompts)


async def _forward(client: VllmClient, request: web.Request, body: Any) -> web.StreamResponse:
    async with client.session.request(request.method, f"{client.url}{request.path}", json=body) as answer:
        if answer.status >= 500:
            return _failed(answer.status, await answer.text())
        headers = {key: answer.headers[key] for key in _PASSED_BACK if key in answer.headers}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        try:
            async for part in _parts(answer):
                await response.write(part)
        except BROKEN as error:
            # The answer has begun: no other can follow, and an end would look like that of a whole one.
            log.warning("vLLM broke an answer off: %s", str(error) or type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response


async def _answer_whole(
    client: VllmClient, request: web.Request, body: dict[str, Any], sent: dict[str, Any]
) -> web.StreamResponse:
    """The answer to a request with tools, `body`, which was put into words as `sent`: also streamed all at once."""
    async with client.session.post(f"{client.url}{request.path}", json=sent) as answer:
        text = await answer.text()
        if answer.status >= 500:
            return _failed(answer.status, text)
        if answer.status != 200:
            return web.Response(status=answer.status, text=text, content_type=answer.content_type)
    told = answered(json.loads(text))
    if not body.get("stream"):
        return web.json_response(told)
    options = body.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return web.Response(body=as_stream(told, usage=usage), content_type="text/event-stream")


def _failed(status: int, text: str) -> web.Response:
    """vLLM's own failure: what it says of its inside goes to the log, and to the caller the id of that line."""
    number = secrets.token_hex(8)
    log.error("request %s: vLLM answered %d: %s", number, status, masked(" ".join(text.split()))[:2000])
    body = error_body(f"the engine failed; request {number}", "server_error", "engine_error")
    return web.json_response(body, status=502, headers={REQUEST_ID: number})


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for part in answer.content.iter_any():
        yield part


def _unavailable(error: BaseException) -> web.Response:
    delay = error.delay if isinstance(error, RetryableError) else 5.0
    log.warning("the endpoint could not answer: %s", str(error) or type(error).__name__)
    why = str(error) if isinstance(error, EngineNotReady) else "the engine does not answer now; try again"
    headers = {"Retry-After": str(max(1, round(delay)))}
    return web.json_response(error_body(why, "server_error", "unavailable"), status=503, headers=headers)
