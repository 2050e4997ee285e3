"""The client over HTTP: a provider's stand-in on loopback, the real openai SDK under pydantic-ai."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar

import pytest
from aiohttp import web
from pydantic import BaseModel

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.errors import RetryableError, ServiceLLMRefused
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import (
    Answer,
    Call,
    Mark100,
    ProviderSender,
    ServiceLLMClient,
    parse_one,
    rebought,
)

KEY = "sk-test-5f0c8a"


class Verdict(BaseModel):
    reason: str
    mark: Mark100


@dataclass
class Seen:
    at: float
    headers: Mapping[str, str]
    body: dict[str, Any]


Respond = Callable[[int], web.Response | float]


@dataclass
class StandIn:
    """Answers with what `respond` makes of the request's number; a float is a silence of so many seconds."""

    respond: Respond
    url: str = ""
    seen: list[Seen] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(time.monotonic(), request.headers, await request.json()))
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return error(
                401, f"Incorrect API key provided: {request.headers.get('Authorization')}", "invalid_api_key"
            )
        response = self.respond(len(self.seen))
        if isinstance(response, float):
            await asyncio.sleep(response)
            return completion("too late")
        return response


def completion(text: str | None, *, finish: str = "stop", refusal: str | None = None) -> web.Response:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return web.json_response(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "stand-in",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
        }
    )


def error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "error", "code": code, "param": None}}
    return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def stand_in(respond: Respond) -> AsyncIterator[StandIn]:
    server = StandIn(respond)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


class Desk:
    """A client with buckets in memory, closed after the test."""

    opened: ClassVar[list[Desk]] = []

    def __init__(self, url: str, *, key: str = KEY, max_tries: int = 3) -> None:
        Desk.opened.append(self)
        self.ledger = MemoryKeyValue()
        self.url = url
        self.client = ServiceLLMClient(
            ledger=self.ledger,
            budget=MemoryKeyValue(),
            permits=MemoryKeyValue(),
            replica="test",
            send=ProviderSender({"STAND_IN_KEY": key}),
            max_tries=max_tries,
        )

    def call(self, text: str = "How good is this?", *, timeout_s: float = 20, **more: Any) -> Call:
        llm = ServiceLLM(
            model="openai:stand-in",
            base_url=self.url,
            api_key_env="STAND_IN_KEY",
            requests_per_minute=60_000,
            timeout_s=timeout_s,
        )
        messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}]
        return Call(messages=messages, llm=llm, migration="m", job="j", **({"max_tokens": 50} | more))

    async def ask(self, call: Call) -> Answer:
        return await self.client.ask(call, Budgets(calls=1000))


@pytest.fixture(autouse=True)
async def _all_desks_are_closed() -> AsyncIterator[None]:
    yield
    while Desk.opened:
        await Desk.opened.pop().client.close()


async def test_typed_output_with_the_callers_settings_and_key() -> None:
    async with stand_in(lambda _: completion('{"reason": "short", "mark": "85/100"}')) as server:
        desk = Desk(server.url)
        call = desk.call(schema=Verdict, seed=7, temperature=0.25)
        answer = await desk.ask(call)
        assert parse_one(answer.text, Verdict) == (Verdict(reason="short", mark=85), [])
        assert (answer.input_tokens, answer.output_tokens, answer.money) == (12, 7, 0)
        [seen] = server.seen
        assert seen.headers["Idempotency-Key"] == call.key
        assert seen.body["model"] == "stand-in"
        assert seen.body["messages"] == list(call.messages)
        assert (seen.body["seed"], seen.body["temperature"]) == (7, 0.25)
        assert 50 in (seen.body.get("max_tokens"), seen.body.get("max_completion_tokens"))
        asked = seen.body["response_format"]["json_schema"]
        assert (asked["name"], asked["strict"]) == ("Verdict", True)
        assert list(asked["schema"]["properties"]) == ["reason", "mark"]
        again = await desk.ask(call)
        assert again.from_ledger and len(server.seen) == 1


async def test_a_response_format_is_passed_on_as_it_is() -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "n", "strict": False, "schema": {"type": "object", "x": None}},
    }
    async with stand_in(lambda _: completion("{}")) as server:
        await (desk := Desk(server.url)).ask(desk.call(response_format=form))
        await desk.ask(desk.call(response_format={"type": "json_object"}))
        assert [seen.body["response_format"] for seen in server.seen] == [form, {"type": "json_object"}]
        assert server.seen[0].body["messages"] == list(desk.call().messages)


async def test_plain_text_asks_for_no_schema() -> None:
    async with stand_in(lambda _: completion("cut of", finish="length")) as server:
        answer = await (desk := Desk(server.url)).ask(desk.call())
        assert (answer.text, answer.finish_reason) == ("cut of", "length")
        assert "response_format" not in server.seen[0].body
        assert "temperature" not in server.seen[0].body


@pytest.mark.parametrize("form", ["seconds", "fraction", "date"])
async def test_a_429_is_waited_out_as_the_provider_asks(form: str) -> None:
    def respond(number: int) -> web.Response:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        header = {"seconds": "1", "fraction": "0.8", "date": date}[form]
        return (
            error(429, "slow down", "rate_limit_exceeded", {"Retry-After": header})
            if number == 1
            else completion("ok")
        )

    async with stand_in(respond) as server:
        answer = await (desk := Desk(server.url)).ask(desk.call())
        assert (answer.text, answer.failed, answer.rebought) == ("ok", 1, False)
        first, second = server.seen
        assert 0.75 <= second.at - first.at < 4
        assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad_request"),
        (403, "forbidden"),
        (404, "model_not_found"),
        (422, "invalid"),
        (429, "insufficient_quota"),
    ],
)
async def test_what_cannot_get_better_is_sent_once(status: int, code: str) -> None:
    async with stand_in(lambda _: error(status, "no", code)) as server:
        desk = Desk(server.url)
        with pytest.raises(ServiceLLMRefused, match="stand-in"):
            await desk.ask(desk.call())
        assert len(server.seen) == 1


async def test_a_wrong_key_is_sent_once_and_appears_nowhere() -> None:
    async with stand_in(lambda _: completion("never")) as server:
        desk = Desk(server.url, key="sk-secret-and-wrong")
        with pytest.raises(ServiceLLMRefused) as refused:
            await desk.ask(desk.call())
        assert len(server.seen) == 1
        assert "401" in str(refused.value)
        entry = await desk.ledger.get(desk.call().key)
        assert entry is not None
        assert "sk-secret-and-wrong" not in str(refused.value) + entry.value.decode()
        chained = (refused.value.__cause__, refused.value.__context__)
        assert "sk-secret-and-wrong" not in repr(chained)


@pytest.mark.parametrize("status", [500, 503, 408])
async def test_server_errors_are_tried_again_by_us_and_never_by_the_sdk(status: int) -> None:
    async with stand_in(lambda _: error(status, "down", "down")) as server:
        desk = Desk(server.url, max_tries=2)
        with pytest.raises(RetryableError, match="tried 2 times"):
            await desk.ask(desk.call())
        assert len(server.seen) == 2
        assert await rebought(desk.ledger, "m") == []


async def test_a_silent_server_is_left_after_the_timeout_and_the_second_send_is_listed() -> None:
    async with stand_in(lambda number: 5.0 if number == 1 else completion("ok")) as server:
        desk = Desk(server.url)
        started = time.monotonic()
        answer = await desk.ask(desk.call(timeout_s=0.5))
        assert answer.rebought and time.monotonic() - started < 4
        assert len(server.seen) == 2
        assert [one.key for one in await rebought(desk.ledger, "m")] == [desk.call().key]


async def test_a_server_that_is_not_there_is_retryable_and_nothing_may_have_been_paid() -> None:
    desk = Desk("http://127.0.0.1:1/v1", max_tries=2)
    with pytest.raises(RetryableError):
        await desk.ask(desk.call())
    assert await rebought(desk.ledger, "m") == []


async def test_a_body_that_is_no_completion_is_tried_again() -> None:
    bodies = [web.Response(text="<html>proxy</html>", content_type="text/html"), web.json_response({"hello": 1})]

    async with stand_in(lambda number: bodies[number - 1] if number <= 2 else completion("ok")) as server:
        answer = await (desk := Desk(server.url)).ask(desk.call())
        assert (answer.text, answer.failed, len(server.seen)) == ("ok", 2, 3)


@pytest.mark.parametrize(
    "refusal", [completion(None, refusal="I can not help with that."), completion("", finish="content_filter")]
)
async def test_a_refusal_in_words_is_a_refusal(refusal: web.Response) -> None:
    body = json.loads(refusal.body)  # type: ignore[arg-type]
    async with stand_in(lambda _: web.json_response(body)) as server:
        desk = Desk(server.url)
        for _ in range(2):
            with pytest.raises(ServiceLLMRefused):
                await desk.ask(desk.call())
        assert len(server.seen) == 1


async def test_many_calls_keep_to_the_concurrency_and_their_order() -> None:
    async with stand_in(lambda _: completion("ok")) as server:
        desk = Desk(server.url)
        results = await desk.client.ask_all([desk.call(f"t{n}") for n in range(50)], Budgets())
        assert all(isinstance(one, Answer) and one.text == "ok" for one in results)
        assert len({one.headers["Idempotency-Key"] for one in server.seen}) == len(server.seen) == 50
