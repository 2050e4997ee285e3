"""Requests with tools at the endpoint: asked in words, answered with calls, by the client library that others use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamaduo.datasets import Message
from llamaduo.tools_in_words import in_words
from services.inference.adapter_store import AdapterStore
from services.inference.tool_requests import answered, as_stream, needs_tools
from services.inference.vllm_engine import BaseModel, VllmEngine
from tests.unit.test_tools import FIND, SPOKEN
from tests.unit.vllm_stand_in import VllmStandIn

ASKED: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "where is A1"}], "seed": 1}


@pytest.fixture
async def server() -> VllmStandIn:
    return VllmStandIn()


@pytest.fixture
async def engine(tmp_path: Path, server: VllmStandIn) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"))
    await made.start()
    yield made
    await made.stop()


async def test_openais_client_offers_tools_and_gets_calls(engine: VllmEngine, server: VllmStandIn) -> None:
    openai = pytest.importorskip("openai")
    server.says = f"I look.\n{SPOKEN}"
    async with openai.AsyncOpenAI(base_url=engine.base_url, api_key="x", max_retries=0) as client:
        made = await client.chat.completions.create(**ASKED, tools=[FIND])
        [call] = made.choices[0].message.tool_calls
        assert (made.choices[0].finish_reason, made.choices[0].message.content) == ("tool_calls", "I look.")
        assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"order": "A1", "limit": 1})
        sent = server.asked[-1]
        asked = [Message(role="user", content="where is A1")]
        assert sent["messages"] == [message.model_dump() for message in in_words(asked, [FIND])]
        assert sent.keys() == {"model", "messages", "seed"}

        turn = made.choices[0].message.model_dump(exclude_none=True)
        result = {"role": "tool", "tool_call_id": call.id, "content": "paid"}
        server.says = "It is paid."
        parts = []
        more = {**ASKED, "messages": [*ASKED["messages"], turn, result]}
        async for part in await client.chat.completions.create(**more, tools=[FIND], stream=True):
            parts += [choice.delta.content or "" for choice in part.choices]
        assert "".join(parts) == "It is paid."
        said = server.asked[-1]["messages"]
        assert [message["role"] for message in said] == ["system", "user", "assistant", "user"]
        assert said[2]["content"] == f"I look.\n{SPOKEN}" and said[3]["content"] == "Result of find:\npaid"

        server.says = SPOKEN
        streamed = await client.chat.completions.create(
            **ASKED, tools=[FIND], stream=True, stream_options={"include_usage": True}
        )
        chunks = [part async for part in streamed]
        assert chunks[0].choices[0].delta.tool_calls[0].function.name == "find"
        assert (chunks[1].choices[0].finish_reason, chunks[-1].usage.prompt_tokens) == ("tool_calls", 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice must be auto or none"),
        ({"tools": [{"name": "f"}]}, "tools[0]: is no tool"),
        ({"tools": "all"}, "tools: must be a list of tools"),
        ({"messages": "hi"}, "messages: must be a list of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text can be learnt"),
        ({"response_format": {"type": "json_object"}}, "together are not served"),
    ],
)
async def test_what_cannot_be_asked_is_said(
    engine: VllmEngine, server: VllmStandIn, change: dict[str, Any], says: str
) -> None:
    reached = len(server.asked)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{engine.base_url}/chat/completions", json={**ASKED, "tools": [FIND], **change}) as answer,
    ):
        assert answer.status == 400
        assert says in (await answer.json())["error"]["message"]
    assert len(server.asked) == reached


def test_without_tools_nothing_is_changed() -> None:
    assert not needs_tools(ASKED) and not needs_tools({**ASKED, "tools": []}) and not needs_tools({"messages": 7})
    assert needs_tools({"messages": [{"role": "tool"}]})
    plain = {"id": "1", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
    assert answered(plain) == plain
    assert as_stream(plain, usage=False).count(b"data: ") == 3
