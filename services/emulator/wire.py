"""The bodies of the OpenAI chat completions API: answers, chunks of a stream, model list, errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from pydantic import JsonValue

from services.emulator.answers import Answer

FINGERPRINT = "llamaduo-emulator"
Body = dict[str, JsonValue]


def usage(prompt_tokens: int, completion_tokens: int) -> Body:
    """The usage part of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _message(answer: Answer, call_id: str) -> Body:
    if answer.tool is None:
        return {"role": "assistant", "content": answer.text, "refusal": None}
    call: Body = {
        "id": call_id,
        "type": "function",
        "function": {"name": answer.tool, "arguments": answer.text},
    }
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}


def completion(answer: Answer, answer_id: str, model: str, choices: int, used: Body) -> Body:
    """A whole `chat.completion` with the answer given `choices` times."""
    return {
        "id": f"chatcmpl-{answer_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": index,
                "message": _message(answer, f"call_{answer_id}_{index}"),
                "finish_reason": answer.finish_reason,
                "logprobs": None,
            }
            for index in range(choices)
        ],
        "usage": used,
    }


def stream(
    answer: Answer, answer_id: str, model: str, choices: int, used: Body, *, include_usage: bool
) -> Iterator[str]:
    """The same answer as server-sent events, about 20 characters a chunk, ending with `[DONE]`."""
    created = int(time.time())

    def event(parts: list[JsonValue], used_now: Body | None = None) -> str:
        chunk: Body = {
            "id": f"chatcmpl-{answer_id}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": FINGERPRINT,
            "choices": parts,
        }
        if include_usage:
            chunk["usage"] = used_now
        return f"data: {json.dumps(chunk)}\n\n"

    def part(index: int, delta: Body, finish: str | None = None) -> list[JsonValue]:
        return [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]

    for index in range(choices):
        opening = _message(answer, f"call_{answer_id}_{index}") | {"content": None if answer.tool else ""}
        if answer.tool is not None:
            function: Body = {"name": answer.tool, "arguments": ""}
            call: Body = {
                "index": 0,
                "id": f"call_{answer_id}_{index}",
                "type": "function",
                "function": function,
            }
            opening["tool_calls"] = [call]
        yield event(part(index, opening))
        for start in range(0, len(answer.text), 20):
            piece = answer.text[start : start + 20]
            if answer.tool is None:
                yield event(part(index, {"content": piece}))
            else:
                step: Body = {"index": 0, "function": {"arguments": piece}}
                yield event(part(index, {"tool_calls": [step]}))
        yield event(part(index, {}, answer.finish_reason))
    if include_usage:
        yield event([], used)
    yield "data: [DONE]\n\n"


def model_list(model: str) -> Body:
    """The answer of `GET /v1/models`."""
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": 0, "owned_by": FINGERPRINT}],
    }


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> Body:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
