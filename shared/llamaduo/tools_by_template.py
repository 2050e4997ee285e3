"""Tools as a base model's own chat template renders them, the same for training and for a server that renders.

A server (vLLM) reads tools into models of its own before it renders them, so what it would drop, add or put in
another order is settled here: the rendered prompt must be the one that was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llamaduo.datasets import Message
from llamaduo.identity import canonical_json
from llamaduo.tool_calls import ToolWording
from llamaduo.tools_in_words import in_words

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def offered(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools with all their fields and no others, in one order; None where there are none.

    Rows are stored with sorted keys, so schemas of callers are sorted too.
    """
    if not tools:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "description": tool["function"].get("description") or "",
                "parameters": _sorted(tool["function"].get("parameters") or _NO_PARAMETERS),
            },
        }
        for tool in tools
    ]


def asked_with(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, wording: ToolWording
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and further keys of a chat completions request in this wording.

    `tool_choice: none` leaves the tools in the prompt, and the answer as the text that it is: vLLM then needs no
    parser of calls.
    """
    if wording == "text":
        return [message.model_dump() for message in in_words(messages, tools)], {}
    further = {"tools": given, "tool_choice": "none"} if (given := offered(tools)) else {}
    return [_of_openai(message) for message in messages], further


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages for a chat template, which wants the arguments of calls as objects."""
    said = [message.model_dump() for message in messages]
    for message in said:
        for call in message.get("tool_calls") or ():
            call["function"] = {**call["function"], "arguments": _sorted(call["function"]["arguments"])}
    return said


def may_render_tools(template: str) -> bool:
    """False for a chat template that never names the tools, so that it cannot render them."""
    return re.search(r"\btools\b", template) is not None


def _sorted(value: Any) -> Any:
    return json.loads(canonical_json(value))


def _of_openai(message: Message) -> dict[str, Any]:
    """With the arguments of calls as text, as that API wants them."""
    said = message.model_dump()
    for call in said.get("tool_calls") or ():
        call["function"] = {**call["function"], "arguments": canonical_json(call["function"]["arguments"])}
    return said
