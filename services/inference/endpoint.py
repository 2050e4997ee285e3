"""The OpenAI API for others, in front of vLLM: the same paths and answers, with vLLM's traps closed.

Adapters cannot be loaded or unloaded from here, what ends vLLM's engine is refused, and each request takes its
place in the engine's order of base and adapter requests. Tools are put into words and calls taken out of them.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from llamaduo.errors import RetryableError
from llamaduo.tool_calls import ToolWording
from services.inference.tool_requests import BadToolRequest, answered, as_stream, asked, needs_tools
from services.inference.vllm_client import BROKEN, VllmClient

_LARGEST_BODY = 16 * 1024 * 1024
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
    """Listens on `host` and `port` (0: a free one, known after `start`)."""

    def __init__(self, engine: Places, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._engine, self._tls = engine, tls
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        host = "127.0.0.1" if self._host in ("", "0.0.0.0", "::") else self._host  # noqa: S104
        return f"{'http' if self._tls is None else 'https'}://{host}:{self._port}/v1"

    async def start(self) -> None:
        if self._runner is not None:
            return
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for path in _GENERATING:
            app.router.add_post(path, self._generate)
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
            return await _forward(self._engine.client_now(), request, None)
        except (RetryableError, *BROKEN) as error:
            return _unavailable(error)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            model = body.get("model", "")
            if not isinstance(model, str):
                raise TypeError
        except (ValueError, TypeError, AttributeError):
            return _error(400, "the body must be a JSON object with a model's name")
        if reason := refusal(body):
            return _error(400, reason)
        if not self._engine.serves(model):
            return _error(404, f"the model {model} is not served here; GET /v1/models lists what is")
        with_tools = request.path == _CHAT and needs_tools(body)
        try:
            sent = asked(body, self._engine.tool_wording(model)) if with_tools else body
            async with self._engine.request_place(model, wait_s=0) as client:
                if with_tools:
                    return await _answer_whole(client, request, body, sent)
                return await _forward(client, request, sent)
        except BadToolRequest as error:
            return _error(400, str(error))
        except (RetryableError, *BROKEN) as error:
            return _unavailable(error)


def refusal(body: dict[str, Any]) -> str | None:
    """Why this request must not reach vLLM; None where it may.

    Log-probabilities of the prompt end the engine when an adapter is used in a batch with others.
    """
    if body.get("prompt_logprobs") is not None:
        return "prompt_logprobs is not served here: with adapters it ends vLLM's engine"
    if body.get("echo") and body.get("logprobs") is not None:
        return "echo with logprobs is not served here: with adapters it ends vLLM's engine"
    return None


async def _forward(client: VllmClient, request: web.Request, body: Any) -> web.StreamResponse:
    async with client.session.request(request.method, f"{client.url}{request.path}", json=body) as answer:
        headers = {key: answer.headers[key] for key in _PASSED_BACK if key in answer.headers}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        async for part in _parts(answer):
            await response.write(part)
        await response.write_eof()
        return response


async def _answer_whole(
    client: VllmClient, request: web.Request, body: dict[str, Any], sent: dict[str, Any]
) -> web.StreamResponse:
    """The answer to a request with tools, `body`, which was put into words as `sent`: also streamed all at once."""
    async with client.session.post(f"{client.url}{request.path}", json=sent) as answer:
        text = await answer.text()
        if answer.status != 200:
            return web.Response(status=answer.status, text=text, content_type=answer.content_type)
    told = answered(json.loads(text))
    if not body.get("stream"):
        return web.json_response(told)
    options = body.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return web.Response(body=as_stream(told, usage=usage), content_type="text/event-stream")


async def _parts(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for part in answer.content.iter_any():
        yield part


def _unavailable(error: BaseException) -> web.Response:
    delay = error.delay if isinstance(error, RetryableError) else 5.0
    answer = _error(503, str(error) or type(error).__name__)
    answer.headers["Retry-After"] = str(max(1, round(delay)))
    return answer


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "llamaduo", "code": status}}, status=status)
