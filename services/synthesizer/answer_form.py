"""The form that all reference answers share, which generated answers must have too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_FENCED = re.compile(r"\A\s*```[a-zA-Z]*\n(.*?)\n?```\s*\Z", re.DOTALL)

JsonObject = dict[str, object]


@dataclass(frozen=True)
class AnswerForm:
    """Where every reference answer is a JSON object: keys each one has, keys any may have (in their usual
    order), and how they are spelled out (None: in more than one way). `required` None: answers are free
    text.
    """

    required: frozenset[str] | None = None
    allowed: tuple[str, ...] = ()
    spelling: Callable[[JsonObject], str] | None = None


def _compact(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _spaced(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False)


def _indented(value: JsonObject) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def answer_form(answers: Sequence[str]) -> AnswerForm:
    """The form of some reference answers."""
    objects: list[JsonObject] = []
    for answer in answers:
        value = _json_object(answer)
        if value is None:
            return AnswerForm()
        objects.append(value)
    if not objects:
        return AnswerForm()
    allowed = tuple(dict.fromkeys(key for value in objects for key in value))
    required = frozenset.intersection(*(frozenset(value) for value in objects))
    for spelling in (_compact, _spaced, _indented):
        if all(spelling(_ordered(value, allowed)) == answer for value, answer in zip(objects, answers, strict=True)):
            return AnswerForm(required, allowed, spelling)
    return AnswerForm(required, allowed)


def conform(answer: str, form: AnswerForm) -> str | None:
    """`answer` in the references' form: fences taken off, JSON spelled as they spell it. None: it has not
    that form.
    """
    if form.required is None:
        return answer.strip() or None
    fenced = _FENCED.match(answer)
    text = (fenced[1] if fenced else answer).strip()
    value = _json_object(text)
    if value is None or not form.required <= value.keys() or not value.keys() <= set(form.allowed):
        return None
    return form.spelling(_ordered(value, form.allowed)) if form.spelling else text


def _ordered(value: JsonObject, keys: Sequence[str]) -> JsonObject:
    return {key: value[key] for key in keys if key in value}


def _json_object(text: str) -> JsonObject | None:
    """The object in `text`; None for other values, and for what JSON or UTF-8 cannot write again (NaN, half a
    surrogate pair)."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
