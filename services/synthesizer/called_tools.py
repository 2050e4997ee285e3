"""Whether an answer that a teacher wrote calls tools as they can be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamaduo.identity import canonical_json
from llamaduo.json_schemas import UnusableSchema, validator_of
from llamaduo.tool_calls import ToolCall, read_answer

_MEANT_AS_A_CALL = ("{", "[", "<tool_call>")


def called_rightly(answer: str, tools: Sequence[Mapping[str, Any]], *, words_too: bool) -> str | None:
    """The answer with its calls as we write them; None where one is of no tool offered, or its arguments are not
    those that the tool's schema allows. `words_too`: whether an answer may call nothing.
    """
    read = read_answer(answer.strip())
    if not read.calls:
        in_words = words_too and not read.content.startswith(_MEANT_AS_A_CALL) and "tool_calls" not in read.content
        return read.content if in_words else None
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    right = all(call.name in functions and _fits(call, functions[call.name]) for call in read.calls)
    return read.text if right else None


def _fits(call: ToolCall, function: Mapping[str, Any]) -> bool:
    from referencing.exceptions import Unresolvable

    schema = function.get("parameters") or {"type": "object"}
    try:
        return bool(validator_of(canonical_json(schema)).is_valid(dict(call.arguments)))
    except (UnusableSchema, Unresolvable):
        # The team's own tool, which the service LLM was given as it is: there is nothing to hold a call to.
        return True
    except RecursionError:
        return False
