"""Calls of tools as text: the one way in which we write them, and the ways in which models do that are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamaduo.identity import canonical_json
from llamaduo.json_values import MISSING, json_value

ToolWording = Literal["text", "template"]
"""How a small model is shown tools and calls them: in our words, or as its own chat template renders them."""

_MOST_CALLS = 32
_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by its name, with the arguments as JSON values."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class SaidAndCalled:
    """An answer taken apart: what it says to the user, and the tools that it calls, in order."""

    content: str
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """The answer as we write it: the content, and the calls as one line of JSON.

        The name comes before the arguments, since a model that writes from left to right chooses the tool first;
        their order is the alphabet's, so that equal calls are equal texts.
        """
        if not self.calls:
            return self.content
        written = ",".join(
            f'{{"name":{canonical_json(call.name)},"arguments":{canonical_json(dict(call.arguments))}}}'
            for call in self.calls
        )
        line = f'{{"tool_calls":[{written}]}}'
        return f"{self.content}\n{line}" if self.content else line


def read_answer(text: str) -> SaidAndCalled:
    """An answer taken apart; without calls where it makes none, or one that cannot be read.

    Read are one call or a list of them as JSON, `{"name", "arguments"}` or OpenAI's `{"function": …}` and
    `{"tool_calls": […]}`, arguments as an object or as its text: as the whole text, as its last line, or between
    `<tool_call>` tags.
    """
    if tagged := _TAGGED.findall(text):
        read = [_calls_of(part) for part in tagged]
        if not all(read):
            return SaidAndCalled(text)
        content = _TAGGED.sub("", text).strip()
        return SaidAndCalled(content, tuple(call for calls in read for call in calls)[:_MOST_CALLS])
    before, _, last = text.rstrip().rpartition("\n")
    for content, part in (("", text), (before.strip(), last)):
        if calls := _calls_of(part):
            return SaidAndCalled(content, tuple(calls[:_MOST_CALLS]))
    return SaidAndCalled(text)


def call_of(raw: Mapping[str, Any]) -> ToolCall:
    """A call of a message of ours, or of OpenAI's API. ValueError where it is none."""
    calls = _read(dict(raw))
    if calls is None:
        raise ValueError("no call of a tool")
    return calls[0]


def as_openai(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """The calls as a message of a row holds them: OpenAI's form, but for the arguments, which stay objects."""
    return [
        {"id": str(place), "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for place, call in enumerate(calls)
    ]


def _calls_of(text: str) -> list[ToolCall]:
    """The calls that a whole text is; [] where it is none, or holds what no file can (half a surrogate pair)."""
    calls = _read(json_value(text)) or []
    try:
        SaidAndCalled("", tuple(calls)).text.encode()
    except UnicodeEncodeError:
        return []
    return calls


def _read(value: Any) -> list[ToolCall] | None:
    """The calls of a JSON value; None where it is none."""
    if isinstance(value, list):
        read = [_read(item) for item in value]
        return [call for calls in read if calls for call in calls] if value and all(read) else None
    if value is MISSING or not isinstance(value, dict):
        return None
    if isinstance(value.get("tool_calls"), list):
        return _read(value["tool_calls"])
    function = value.get("function", value)
    if not isinstance(function, dict):
        return None
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = json_value(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return [ToolCall(name, arguments)]
