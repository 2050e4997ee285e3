"""The emulator over HTTP, as the real `openai` client sees it, and as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionToolParam
from openai.types.shared_params import ResponseFormatJSONSchema
from pydantic import BaseModel

from services.emulator.app import make_app, start
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings
from services.emulator.teacher import understand

ROOT = Path(__file__).resolve().parents[2]
MESSAGE = "Where is my yoga mat? Order A4821. This is urgent!"
RECORD = '{"intent":"delivery","product":"yoga mat","order":"A4821","urgency":"high"}'


class Pair(BaseModel):
    prompt: str
    answer: str


class Pairs(BaseModel):
    pairs: list[Pair]


class JudgeMarks(BaseModel):
    similarity_reason: str
    similarity: int
    precision_reason: str
    precision: int


class Server:
    """A running emulator and clients for it."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.root}/v1", api_key=key, max_retries=0)

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, object]]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.root + path, headers=headers) as got,
        ):
            return got.status, await got.json()


@asynccontextmanager
async def emulator(**options: object) -> AsyncIterator[Server]:
    settings = EmulatorSettings.model_validate({"model_name": "teacher", **options})
    with Ledger(settings.ledger_file) as ledger:
        runner, port = await start(make_app(settings, ledger), "127.0.0.1", 0)
        try:
            yield Server(port)
        finally:
            await runner.cleanup()


def _native(model: type[BaseModel]) -> ResponseFormatJSONSchema:
    return {
        "type": "json_schema",
        "json_schema": {"name": model.__name__, "schema": model.model_json_schema(), "strict": True},
    }


def _tool(model: type[BaseModel]) -> ChatCompletionToolParam:
    return {"type": "function", "function": {"name": "final_result", "parameters": model.model_json_schema()}}


async def _ask(
    client: openai.AsyncOpenAI, text: str = MESSAGE, *, key: str | None = None, model: str = "teacher"
) -> str | None:
    headers = {"Idempotency-Key": key} if key else {}
    made = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], extra_headers=headers
    )
    return made.choices[0].message.content


async def test_the_task_is_answered_with_usage_and_an_honest_name() -> None:
    async with emulator() as server, server.client() as client:
        made = await client.chat.completions.create(
            model="teacher",
            n=2,
            messages=[
                {"role": "system", "content": "Triage this message as JSON."},
                {"role": "user", "content": "Refund my tent."},
                {"role": "assistant", "content": "{}"},
                {"role": "user", "content": [{"type": "text", "text": MESSAGE}]},
            ],
        )
        models = await client.models.list()
    assert [choice.message.content for choice in made.choices] == [RECORD, RECORD]
    assert made.choices[0].finish_reason == "stop"
    assert made.system_fingerprint == "llamaduo-emulator"
    assert made.usage is not None
    assert made.usage.completion_tokens == 2 * 19
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    assert [(model.id, model.owned_by) for model in models.data] == [("teacher", "llamaduo-emulator")]


async def test_a_stream_carries_the_same_answer() -> None:
    async with emulator() as server, server.client() as client:
        stream = await client.chat.completions.create(
            model="teacher",
            messages=[{"role": "user", "content": MESSAGE}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == RECORD
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 19


@pytest.mark.parametrize("way", ["native", "tool"])
async def test_synthesis_gives_typed_pairs(way: Literal["native", "tool"]) -> None:
    prompt = f"Example: {MESSAGE} {RECORD}\nWrite 6 new pairs."
    async with emulator() as server, server.client() as client:
        if way == "native":
            made = await client.chat.completions.create(
                model="teacher", messages=[{"role": "user", "content": prompt}], response_format=_native(Pairs)
            )
            text = made.choices[0].message.content
        else:
            made = await client.chat.completions.create(
                model="teacher",
                messages=[{"role": "user", "content": prompt}],
                tools=[_tool(Pairs)],
                tool_choice="required",
            )
            calls = made.choices[0].message.tool_calls
            assert calls and calls[0].type == "function"
            assert (calls[0].function.name, made.choices[0].finish_reason) == ("final_result", "tool_calls")
            text = calls[0].function.arguments
    pairs = Pairs.model_validate_json(text or "").pairs
    assert len(pairs) == 6
    assert all(pair.answer == understand(pair.prompt).as_json() for pair in pairs)


@pytest.mark.parametrize(("candidate", "similarity"), [(RECORD, 100), (RECORD.replace("high", "low"), 75), ("", 0)])
async def test_judge_gives_typed_marks(candidate: str, similarity: int) -> None:
    prompt = (
        f"<instruction>{MESSAGE}</instruction>\n<reference>{RECORD}</reference>\n<candidate>{candidate}</candidate>"
    )
    async with emulator() as server, server.client() as client:
        made = await client.chat.completions.create(
            model="teacher",
            messages=[
                {"role": "system", "content": "Compare <candidate> with <reference>."},
                {"role": "user", "content": prompt},
            ],
            response_format=_native(JudgeMarks),
        )
    assert JudgeMarks.model_validate_json(made.choices[0].message.content or "").similarity == similarity


async def test_a_wrong_key_is_refused_everywhere_but_for_health() -> None:
    async with emulator(api_key="sk-right") as server:
        async with server.client("sk-right") as client:
            assert await _ask(client) == RECORD
        async with server.client("sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await _ask(client, key="k")
        assert refused.value.code == "invalid_api_key"
        assert (await server.get("/emulator/ledger"))[0] == 401
        assert (await server.get("/emulator/reset", "POST"))[0] == 401
        assert await server.get("/healthz") == (200, {"status": "ok"})
        _, ledger = await server.get("/emulator/ledger", Authorization="Bearer sk-right")
    assert ledger["keys"] == {}


async def test_an_unknown_model_path_or_body_is_refused_as_openai_does() -> None:
    async with emulator(max_body_bytes=5000) as server, server.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await _ask(client, model="gpt-4o")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="teacher", messages=[])
        assert bad.value.param == "messages"
        with pytest.raises(openai.APIStatusError) as large:
            await _ask(client, "x" * 6000)
        assert large.value.status_code == 413
        status, body = await server.get("/v1/embeddings", "POST")
        assert status == 404 and "error" in body


async def test_what_the_filter_is_told_of_is_refused_however_often_it_is_sent() -> None:
    async with emulator(refused_text="glow worm") as server, server.client() as client:
        assert [await _ask(client, "my glow worm lamp is broken") for _ in range(3)] == [""] * 3
        assert await _ask(client, "my lamp is broken")
        _, seen = await server.get("/emulator/ledger")
    assert isinstance(seen["totals"], dict) and seen["totals"]["spoiled"] == {"refused": 3}


async def test_the_limit_is_refused_with_a_time_to_wait() -> None:
    async with emulator(rpm=2) as server, server.client() as client:
        await _ask(client)
        await _ask(client)
        with pytest.raises(openai.RateLimitError) as refused:
            await _ask(client)
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
    assert refused.value.code == "rate_limit_exceeded"


async def test_drawn_faults_look_like_a_providers() -> None:
    async with emulator(rate_429=1.0, retry_after_s=3) as server, server.client() as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await _ask(client)
        assert refused.value.response.headers["Retry-After"] == "3"
    async with emulator(error_rate=1.0) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError):
            await _ask(client)
    async with emulator(cut_rate=1.0) as server, server.client() as client:
        made = await client.chat.completions.create(
            model="teacher", messages=[{"role": "user", "content": MESSAGE}], response_format=_native(Pairs)
        )
        assert made.choices[0].finish_reason == "length"
        with pytest.raises(ValueError):
            json.loads(made.choices[0].message.content or "")
    async with emulator(malformed_rate=1.0) as server, server.client() as client:
        assert await _ask(client) != RECORD


async def test_the_callers_token_limit_cuts() -> None:
    async with emulator() as server, server.client() as client:
        made = await client.chat.completions.create(
            model="teacher", messages=[{"role": "user", "content": MESSAGE}], max_completion_tokens=5
        )
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (RECORD[:20], "length")


async def _outcomes(port_options: dict[str, object]) -> list[str]:
    """What twelve keys get, each asked until it is answered."""
    seen = []
    async with emulator(**port_options) as server, server.client() as client:
        for number in range(12):
            for _ in range(20):
                try:
                    await _ask(client, key=f"k{number}")
                    seen.append("answered")
                    break
                except openai.APIStatusError as refused:
                    seen.append(str(refused.status_code))
    return seen


async def test_faults_of_a_run_replay_by_seed() -> None:
    options: dict[str, object] = {"rate_429": 0.3, "error_rate": 0.3}
    first = await _outcomes({**options, "seed": 1})
    assert {"429", "500", "answered"} == set(first)
    assert first == await _outcomes({**options, "seed": 1})
    assert first != await _outcomes({**options, "seed": 2})


async def test_the_ledger_counts_arrivals_and_completions_and_survives_a_restart(tmp_path: Path) -> None:
    options: dict[str, object] = {"ledger_file": tmp_path / "ledger.jsonl"}
    async with emulator(**options) as server, server.client() as client:
        await _ask(client, key="bought-once")
        await _ask(client, key="bought-twice")
        await _ask(client, key="bought-twice")
        await _ask(client)
    async with emulator(**options, error_rate=1.0) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError):
            await _ask(client, key="bought-once")
        _, ledger = await server.get("/emulator/ledger")
        assert ledger["keys"] == {
            "bought-once": {"arrived": 2, "completed": 1},
            "bought-twice": {"arrived": 2, "completed": 2},
        }
        assert ledger["without_key"] == {"arrived": 1, "completed": 1}
        totals = ledger["totals"]
        assert isinstance(totals, dict)
        assert (totals["arrived"], totals["completed"], totals["failed_500"]) == (5, 4, 1)
        await server.get("/emulator/reset", "POST")
        _, ledger = await server.get("/emulator/ledger")
        assert ledger["keys"] == {}


async def test_a_caller_that_leaves_still_pays() -> None:
    async def billed(server: Server) -> bool:
        _, ledger = await server.get("/emulator/ledger")
        return ledger["keys"] == {"k": {"arrived": 1, "completed": 1}}

    async with emulator(latency_ms=200) as server, server.client() as client:
        with pytest.raises(openai.APITimeoutError):
            await _ask(client.with_options(timeout=0.05), key="k")
        await _until(lambda: billed(server))


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(500):
        if await condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail("not within 10 seconds")


async def test_requests_are_served_side_by_side() -> None:
    async with emulator(latency_ms=300) as server, server.client() as client:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(_ask(client, key=f"k{n}") for n in range(10)))
        assert asyncio.get_running_loop().time() - started < 2.5


def test_the_command_says_its_port_and_leaves_on_sigterm(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT}", "LLAMADUO_EMULATOR_API_KEY": "sk-x"}
    with subprocess.Popen(
        [sys.executable, "-m", "services.emulator", "--port-file", str(port_file), "--model-name", "other-name"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # Whatever fails below, leaving this block must not wait for the server for ever.
        guard = threading.Timer(30, process.kill)
        guard.start()
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == "other-name"
        assert int(port_file.read_text()) == ready["port"]
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{ready['port']}/v1", api_key="sk-x", max_retries=0)
        made = client.chat.completions.create(model="other-name", messages=[{"role": "user", "content": MESSAGE}])
        assert made.choices[0].message.content == RECORD
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        guard.cancel()
