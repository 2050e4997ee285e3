"""What kind of task a dataset's answers show: labels, JSON, tool calls, or free text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from llamaduo.datasets import Row

Kind = Literal["labels", "json", "tools", "text"]

NEARLY_ALL = 0.95
"""Share of the answers that must be of a kind; the rest may be slips."""
SOME = 0.5
"""Share of the answers that call a tool from which on a task is one of tool calls."""
LONGEST_LABEL, MOST_LABELS, ROWS_A_LABEL = 60, 200, 3
PROSE_WORDS = 8
"""Words in a JSON value from which on it is text that two good answers word differently."""


@dataclass(frozen=True)
class TaskShape:
    """`labels`: the answers by frequency; `keys`: those that nearly all JSON answers have; `prose`: keys of JSON
    answers that hold free text, so that equality would be too strict.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()


def shape_of(rows: Sequence[Row]) -> TaskShape:
    """The shape of a dataset that has rows."""
    answers = [row.answer.strip() for row in rows]
    if sum(_calls_tools(answer) for answer in answers) >= SOME * len(answers):
        return TaskShape("tools")
    objects = [found for answer in answers if isinstance(found := _value(answer), dict)]
    if len(objects) >= NEARLY_ALL * len(answers) and (keys := _shared_keys(objects)):
        return TaskShape("json", keys=keys, prose=tuple(key for key in keys if _is_prose(objects, key)))
    counts = Counter(answers)
    short = sum(number for answer, number in counts.items() if len(answer) <= LONGEST_LABEL and "\n" not in answer)
    few = len(counts) <= min(MOST_LABELS, len(answers) / ROWS_A_LABEL)
    if few and short >= NEARLY_ALL * len(answers):
        return TaskShape("labels", labels=tuple(label for label, _ in counts.most_common()))
    return TaskShape("text")


def _value(text: str) -> Any:
    """The JSON value that a text is, also in a fence; None where it is none."""
    inner = text.removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return json.loads(inner)
    except (ValueError, RecursionError):
        return None


def _calls_tools(answer: str) -> bool:
    """Whether an answer is a call of a tool, or ends in one: a name with arguments, alone or in a list."""
    value = _value(answer)
    if value is None:
        value = _value(answer.rpartition("\n")[2])
    if isinstance(value, dict):
        value = value.get("tool_calls", [value])
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, dict) and _is_call(one.get("function", one)) for one in value)


def _is_call(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("arguments"), dict | str)


def _shared_keys(objects: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Keys that nearly all have, in the order of the first object that has them."""
    counts = Counter(key for one in objects for key in one)
    return tuple(key for key, number in counts.items() if number >= NEARLY_ALL * len(objects))


def _is_prose(objects: Sequence[Mapping[str, Any]], key: str) -> bool:
    words = [len(one[key].split()) for one in objects if isinstance(one.get(key), str)]
    return len(words) >= len(objects) / 2 and median(words) >= PROSE_WORDS
