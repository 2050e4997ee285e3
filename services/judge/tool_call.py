"""Tool call: whether an answer calls the tools that the reference calls, with its arguments. Free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamaduo.built_in_evaluators import METRICS, TOOL_CALL
from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Evaluator
from services.judge.each_answer import Options, each_answer
from services.judge.json_values import MISSING, below, differences, json_value, listed
from services.judge.options import check_options

NAME = TOOL_CALL

_MOST_CALLS = 32
_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by its name, with the arguments as JSON values."""

    name: str
    arguments: Mapping[str, Any]


def calls_in(text: str) -> list[ToolCall]:
    """The calls a text makes, in order; [] where it is words to the user, or a call that cannot be read.

    Read are one call or a list of them as JSON, `{"name", "arguments"}` or OpenAI's `{"function": …}` and
    `{"tool_calls": […]}`, arguments as an object or as its text; and the same between `<tool_call>` tags.
    """
    parts = _TAGGED.findall(text) or [text]
    calls: list[ToolCall] = []
    for part in parts:
        read = _read(json_value(part))
        if read is None:
            return []
        calls += read
    return calls[:_MOST_CALLS]


def compare(reference: str, candidate: str) -> tuple[float, float, str]:
    """(name, arguments, reason), both shares from 0 to 1 over the calls of either text; the order is free.

    name: calls of the right tool. arguments: of each such call the share of arguments that are equal, counting
    those that only one of the two has. A reference that calls nothing wants an answer that calls nothing.
    """
    expected, given = calls_in(reference), calls_in(candidate)
    if not expected:
        right = float(not given)
        return right, right, "no tool is called" if right else "a tool is called where none should be"
    if not given:
        return 0.0, 0.0, "no tool call can be read"
    total = max(len(expected), len(given))
    left, named, equal, wrong = list(given), 0, 0.0, list[str]()
    for call in expected:
        same_tool = [other for other in left if other.name == call.name]
        if not same_tool:
            continue
        nearest = max(same_tool, key=lambda other: _share(call, other)[0])
        left.remove(nearest)
        share, differing = _share(call, nearest)
        named, equal, wrong = named + 1, equal + share, wrong + differing
    reasons = [f"{len(expected) - named} calls are missing"] if named < len(expected) else []
    reasons += [f"{len(left)} calls are unasked"] if left else []
    reasons += [f"differing arguments: {listed(wrong)}"] if wrong else []
    return named / total, equal / total, "; ".join(reasons) or "the same calls"


def tool_call() -> Evaluator:
    """The evaluator `tool-call` with its metrics `name` and `arguments`."""
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer(tuple(METRICS[NAME]), _marks, check=lambda options: check_options(NAME, options, ())),
    )


def _marks(row: ShardRow, answer: str, _options: Options) -> tuple[dict[str, float], str]:
    name, arguments, reason = compare(row.reference, answer)
    return {"name": name, "arguments": arguments}, reason


def _share(expected: ToolCall, given: ToolCall) -> tuple[float, list[str]]:
    """Share of equal arguments, and the names of the others (only those the reference has are told)."""
    names = expected.arguments.keys() | given.arguments.keys()
    differing = [
        name
        for name in expected.arguments
        if name not in given.arguments or differences(expected.arguments[name], given.arguments[name], "")
    ]
    unasked = given.arguments.keys() - expected.arguments.keys()
    wrong = [below("", name) for name in differing] + (["an unasked one"] if unasked else [])
    equal = len(expected.arguments) - len(differing)
    return (equal / len(names) if names else 1.0), wrong


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
