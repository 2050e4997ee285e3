"""Requests with tools, as others send them to the endpoint: asked in the wording that the model was taught.

vLLM would want a parser of calls for each family of models, and knows none for ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaduo.coverage_rows import BadRow, prompt_of, tools_of
from llamaduo.identity import canonical_json
from llamaduo.tool_calls import ToolWording, read_answer
from llamaduo.tools_by_template import asked_with

_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")


class BadToolRequest(ValueError):
    """A request with tools that cannot be asked; the message is for whoever sent it."""


def needs_tools(body: Mapping[str, Any]) -> bool:
    """Whether a request offers tools, or holds calls of them."""
    messages = body.get("messages")
    said = [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    return bool(body.get("tools")) or any(one.get("tool_calls") or one.get("role") == "tool" for one in said)


def asked(body: Mapping[str, Any], wording: ToolWording = "text") -> dict[str, Any]:
    """The request as it goes to vLLM: whole, since only a whole answer tells whether it ends in a call.

    BadToolRequest where it cannot be read, or wants what no wording can give: a call at any rate.
    """
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise BadToolRequest("tool_choice must be auto or none: whether to call is the model's to decide")
    if body.get("response_format") not in (None, {"type": "text"}):
        raise BadToolRequest("tools and a response_format together are not served here")
    try:
        messages = prompt_of(body.get("messages"))
        tools = None if body.get("tool_choice") == "none" else tools_of(body.get("tools"))
    except BadRow as error:
        raise BadToolRequest(f"{error.key}: {error.why}" if error.key else error.why) from error
    rest = {key: value for key, value in body.items() if key not in (*_OF_TOOLS, "stream", "stream_options")}
    said, further = asked_with(messages, tools, wording)
    return {**rest, **further, "messages": said}


def answered(answer: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's answer with the calls that its texts make, as OpenAI writes them."""
    return {**answer, "choices": [_with_calls(choice, str(answer.get("id", ""))) for choice in answer["choices"]]}


def as_stream(answer: Mapping[str, Any], *, usage: bool) -> bytes:
    """A whole answer as server-sent events; with the tokens used where the request asked for them."""
    head = {key: answer[key] for key in ("id", "created", "model") if key in answer}
    head["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        delta = dict(choice["message"])
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
        index = choice.get("index", 0)
        chunks.append({**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        ended = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}
        chunks.append({**head, "choices": [ended]})
    if usage:
        chunks.append({**head, "choices": [], "usage": answer.get("usage")})
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _with_calls(choice: Mapping[str, Any], answer: str) -> dict[str, Any]:
    message = choice["message"]
    read = read_answer(message.get("content") or "")
    if not read.calls:
        return dict(choice)
    index = choice.get("index", 0)
    calls = [
        {
            "id": f"call_{answer.removeprefix('chatcmpl-')}_{index}_{place}",
            "type": "function",
            "function": {"name": call.name, "arguments": canonical_json(dict(call.arguments))},
        }
        for place, call in enumerate(read.calls)
    ]
    told = {"role": "assistant", **message, "content": read.content or None, "tool_calls": calls}
    return {**choice, "message": told, "finish_reason": "tool_calls"}
