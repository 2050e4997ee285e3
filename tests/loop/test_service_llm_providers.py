"""Each provider's real client library against a local server that speaks its protocol: keys, answers, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from pydantic import BaseModel

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.errors import RetryableError, ServiceLLMRefused
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Answer, Call, Mark100, ProviderSender, ServiceLLMClient, parse_one, rebought

KEY = "secret-4471"
TEXT = '{"reason": "short", "mark": "85/100"}'


class Verdict(BaseModel):
    reason: str
    mark: Mark100


@dataclass(frozen=True)
class Protocol:
    """How one provider is spoken to: where, with which key, and what its answers and errors look like."""

    model: str
    address: str
    path: str
    variable: str
    key_header: str
    answer: Callable[[str, bool], dict[str, Any]]
    error: Callable[[int], dict[str, Any]]
    warm: bool = True
    """Whether this model takes a temperature."""


def _chat_answer(text: str, cut: bool) -> dict[str, Any]:
    return {
        "id": "c-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text},
             "finish_reason": "length" if cut else "stop", "logprobs": None}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
    }  # fmt: skip


def _claude_answer(text: str, cut: bool) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "max_tokens" if cut else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 7},
    }  # fmt: skip


def _gemini_answer(text: str, cut: bool) -> dict[str, Any]:
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": text}]},
             "finishReason": "MAX_TOKENS" if cut else "STOP", "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 7, "totalTokenCount": 19},
        "modelVersion": "m", "responseId": "r-1",
    }  # fmt: skip


def _openai_error(status: int) -> dict[str, Any]:
    return {"error": {"message": f"no: {KEY}", "type": "error", "code": str(status), "param": None}}


PROTOCOLS = [
    Protocol(
        "anthropic:claude-sonnet-5", "", "/v1/messages", "ANTHROPIC_API_KEY", "Authorization", _claude_answer,
        lambda status: {"type": "error", "error": {"type": "api_error", "message": f"no: {KEY}"}}, warm=False,
    ),
    Protocol(
        "google:gemini-2.5-flash", "", "/v1beta/models/gemini-2.5-flash:generateContent", "GOOGLE_API_KEY",
        "x-goog-api-key", _gemini_answer,
        lambda status: {"error": {"code": status, "message": f"no: {KEY}", "status": "X"}},
    ),
    Protocol(
        "mistral:mistral-small-latest", "", "/v1/chat/completions", "MISTRAL_API_KEY", "Authorization", _chat_answer,
        lambda status: {"object": "error", "message": f"no: {KEY}", "type": "error", "code": status},
    ),
    Protocol(
        "azure:gpt-4o", "/openai/v1", "/openai/v1/chat/completions", "AZURE_OPENAI_API_KEY", "Authorization",
        _chat_answer, _openai_error,
    ),
]  # fmt: skip
each_provider = pytest.mark.parametrize("spoken", PROTOCOLS, ids=lambda one: one.model.split(":")[0])

Reply = tuple[int, dict[str, str]] | str | float


@dataclass
class StandIn:
    """Answers request n as `script` says: a status with headers, a text, or a silence in seconds."""

    spoken: Protocol
    script: list[Reply]
    url: str = ""
    seen: list[tuple[web.Request, dict[str, Any]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append((request, await request.json()))
        reply = self.script[min(len(self.seen), len(self.script)) - 1]
        if KEY not in request.headers.get(self.spoken.key_header, ""):
            reply = (401, {})
        if isinstance(reply, float):
            await asyncio.sleep(reply)
            reply = "too late"
        if isinstance(reply, str):
            return web.json_response(self.spoken.answer(reply, reply.endswith("cut")))
        status, headers = reply
        return web.json_response(self.spoken.error(status), status=status, headers=headers)


@asynccontextmanager
async def stand_in(spoken: Protocol, *script: Reply) -> AsyncIterator[StandIn]:
    server = StandIn(spoken, list(script))
    app = web.Application()
    app.router.add_post(spoken.path, server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}{spoken.address}"
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def desk(server: StandIn, key: str = KEY) -> AsyncIterator[tuple[ServiceLLMClient, MemoryKeyValue]]:
    ledger = MemoryKeyValue()
    client = ServiceLLMClient(
        ledger=ledger, budget=MemoryKeyValue(), permits=MemoryKeyValue(), replica="test",
        send=ProviderSender({server.spoken.variable: key, "OPENAI_API_KEY": "of-openai"}), max_tries=2,
    )  # fmt: skip
    try:
        yield client, ledger
    finally:
        await client.close()


def call(server: StandIn, *, timeout_s: float = 20, schema: type[BaseModel] | None = None) -> Call:
    llm = ServiceLLM(model=server.spoken.model, base_url=server.url, requests_per_minute=60_000, timeout_s=timeout_s)
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "How good is this?"}]
    return Call(
        messages=messages, llm=llm, migration="m", job="j", max_tokens=50, seed=7, temperature=0.25, schema=schema
    )


@each_provider
async def test_a_typed_answer_with_the_providers_own_key_and_protocol(spoken: Protocol) -> None:
    async with stand_in(spoken, TEXT) as server, desk(server) as (client, _):
        answer = await client.ask(call(server, schema=Verdict), Budgets())
        assert parse_one(answer.text, Verdict) == (Verdict(reason="short", mark=85), [])
        assert (answer.input_tokens, answer.output_tokens, answer.finish_reason) == (12, 7, "stop")
        assert answer.money > 0
        [(request, body)] = server.seen
        assert "of-openai" not in str(dict(request.headers))
        for said in ("How good is this?", "Judge.", "reason", "mark", "50", *(["0.25"] if spoken.warm else [])):
            assert said in str(body)


@each_provider
async def test_a_cut_answer_says_so(spoken: Protocol) -> None:
    async with stand_in(spoken, "half of it, cut") as server, desk(server) as (client, _):
        answer = await client.ask(call(server), Budgets())
        assert (answer.text, answer.finish_reason) == ("half of it, cut", "length")


@each_provider
async def test_the_library_never_tries_again_by_itself(spoken: Protocol) -> None:
    async with stand_in(spoken, (500, {})) as server, desk(server) as (client, ledger):
        with pytest.raises(RetryableError, match="tried 2 times"):
            await client.ask(call(server), Budgets())
        assert len(server.seen) == 2
        assert await rebought(ledger, "m") == []


@each_provider
async def test_a_429_is_waited_out(spoken: Protocol) -> None:
    async with stand_in(spoken, (429, {"Retry-After": "1"}), "ok") as server, desk(server) as (client, _):
        answer = await client.ask(call(server), Budgets())
        assert (answer.text, answer.failed, answer.rebought) == ("ok", 1, False)
        assert len(server.seen) == 2


@each_provider
@pytest.mark.parametrize("key", [KEY, "secret-and-wrong"])
async def test_what_cannot_get_better_is_sent_once_and_shows_no_key(spoken: Protocol, key: str) -> None:
    async with stand_in(spoken, (400, {})) as server, desk(server, key) as (client, _):
        with pytest.raises(ServiceLLMRefused) as refused:
            await client.ask(call(server), Budgets())
        assert len(server.seen) == 1
        assert key not in str(refused.value)


@each_provider
async def test_a_silent_server_is_left_and_may_have_been_paid(spoken: Protocol) -> None:
    async with stand_in(spoken, 5.0, "ok") as server, desk(server) as (client, ledger):
        answer = await client.ask(call(server, timeout_s=0.4), Budgets())
        assert isinstance(answer, Answer) and answer.rebought
        assert len(server.seen) == len(await rebought(ledger, "m")) + 1 == 2
