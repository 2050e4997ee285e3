"""Tool call: whether an answer calls the tools that the reference calls, with its arguments. Free."""

from __future__ import annotations

from llamaduo.built_in_evaluators import METRICS, TOOL_CALL
from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Evaluator
from llamaduo.tool_calls import ToolCall, read_answer
from services.judge.each_answer import Options, each_answer
from services.judge.json_values import below, differences, listed
from services.judge.options import check_options

NAME = TOOL_CALL


def compare(reference: str, candidate: str) -> tuple[float, float, str]:
    """(name, arguments, reason), both shares from 0 to 1 over the calls of either text; the order is free.

    name: calls of the right tool. arguments: of each such call the share of arguments that are equal, counting
    those that only one of the two has. A reference that calls nothing wants an answer that calls nothing.
    """
    expected, given = read_answer(reference).calls, read_answer(candidate).calls
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
        version="2",
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
