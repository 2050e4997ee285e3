"""A stream put together again is the answer that would have come in one piece."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.assembling import Assembled


def stream(*deltas: dict[str, Any], end: str | None = "stop") -> bytes:
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "model": "m"} for delta in deltas
    ]
    if end is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
        chunks.append({"choices": [], "usage": {"total_tokens": 3}})
    events = [f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n" for chunk in chunks]
    return (": a comment\n\n" + "".join(events) + "data: [DONE]\n\n").encode()


def assembled(body: bytes, size: int) -> dict[str, Any] | None:
    one = Assembled()
    for start in range(0, len(body), size):
        one.add(body[start : start + size])
    return one.body()


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
def test_text_is_joined_wherever_the_network_cuts_it(size: int) -> None:
    body = stream({"role": "assistant", "content": ""}, {"content": "Grüße, "}, {"content": "ja \U0001f600"})
    assert assembled(body, size) == {
        "object": "chat.completion",
        "model": "m",
        "usage": {"total_tokens": 3},
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Grüße, ja \U0001f600"},
                "finish_reason": "stop",
            }
        ],
    }


def test_calls_of_tools_are_joined_by_their_index() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        named = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
        return {"tool_calls": [{"index": index, **named, "function": function}]}

    body = stream(
        call(0, name="find", arguments=""), call(0, arguments='{"a"'), call(1, name="go", arguments="{}"),
        call(0, arguments=": 1}"), end="tool_calls",
    )  # fmt: skip
    told = assembled(body, 10_000)
    assert told is not None
    message = told["choices"][0]["message"]
    assert message["content"] is None and [one["function"] for one in message["tool_calls"]] == [
        {"name": "find", "arguments": '{"a": 1}'}, {"name": "go", "arguments": "{}"},
    ]  # fmt: skip
    assert [one["id"] for one in message["tool_calls"]] == ["call_0", "call_1"]


def test_several_choices_stay_apart() -> None:
    chunks = [
        {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": end}]}
        for index, text, end in [(1, "b", None), (0, "a", "stop"), (1, "B", "length")]
    ]
    told = assembled("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode(), 5)
    assert told is not None
    said = [(choice["message"]["content"], choice["finish_reason"]) for choice in told["choices"]]
    assert said == [("a", "stop"), ("bB", "length")]


def test_a_stream_without_its_end_is_no_answer() -> None:
    assert assembled(stream({"content": "half of"}, end=None), 100) is None
    assert assembled(b"data: [DONE]\n\n", 100) is None


def test_what_is_no_chunk_of_a_completion_is_told() -> None:
    for body in (b"data: {]\n", b"data: 1\n", b'data: {"error": {}}\n', b'data: {"choices": [1]}\n'):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            Assembled().add(body)
