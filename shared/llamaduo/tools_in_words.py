"""Tools without tools: a conversation in which they are offered, called and answer, as plain text.

Hardly any two chat templates write a call alike, and those of many small models write none. So the tools stand in the
system prompt and a call is a line of JSON in the answer, the same for every base model: in training, when prompts
are answered, and for whoever calls the served model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from llamaduo.datasets import Message, Row
from llamaduo.identity import canonical_json

_KEYS = ("name", "description", "parameters")
_HOW_TO_CALL = (
    "You can call tools. To do so, end your answer with one line of JSON: "
    '{"tool_calls":[{"name":"the tool","arguments":{"an argument":"its value"}}]}\n'
    "The tools, one a line:"
)


def in_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """The conversation with nothing but roles and texts; one that has no tools is as it was.

    What tools gave is told by the user, one message for all calls of a turn, since templates want user and assistant
    to take turns.
    """
    names: dict[str, str] = {}
    plain: list[Message] = []
    for role, turn in groupby(messages, key=lambda message: message.role):
        if role == "tool":
            plain.append(Message(role="user", content="\n\n".join(_told(message, names) for message in turn)))
            continue
        for message in turn:
            for call in message.tool_calls or ():
                names[str(call.get("id"))] = call["function"]["name"]
            plain.append(Message(role=message.role, content=message.text))
    if not tools:
        return plain
    offered = tools_in_words(tools)
    if plain[0].role == "system":
        return [Message(role="system", content=f"{plain[0].content}\n\n{offered}"), *plain[1:]]
    return [Message(role="system", content=offered), *plain]


def tools_in_words(tools: Sequence[Mapping[str, Any]]) -> str:
    """How tools are offered: how to call one, and a line of JSON for each, its name first."""
    return "\n".join([_HOW_TO_CALL, *tool_lines(tools)])


def tool_lines(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line of JSON for each tool: name, description and parameters."""
    return [_line(tool["function"]) for tool in tools]


def why_not_learnt(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Why rows with tools cannot be learnt, and what to do; None where they can."""
    both = sum(row.needs_tools and row.response_format is not None for row in rows)
    if both:
        # A server that holds the answer to the format would let no call through.
        return (
            f"{both} of {len(rows)} rows have both tools and a response format, which cannot be learnt",
            "take `response_format` out of those rows",
        )
    if rows and all(row.follows_a_tool for row in rows):
        # New rows are a question and its answer: there is nothing to make them after.
        return (
            "every row goes on after a tool has answered: new rows could not be written",
            "add rows whose prompt is a question, such as those that call the tool",
        )
    return None


def _line(function: Mapping[str, Any]) -> str:
    parts = [
        f"{canonical_json(key)}:{canonical_json(function[key])}" for key in _KEYS if function.get(key) is not None
    ]
    return "{" + ",".join(parts) + "}"


def _told(message: Message, names: Mapping[str, str]) -> str:
    name = names.get(message.tool_call_id or "")
    return f"Result of {name}:\n{message.content}" if name else f"Result of the tool:\n{message.content}"
