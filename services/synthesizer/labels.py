"""Whether a task's answers are labels, or have a field that is one, and which label an answer has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

LEAST_ROWS = 8
REPEATED_SHARE = 0.8
LABEL_CHARS = 80
MOST_LABELS = 1_000
MOST_VALUES = 20  # of a field: more of them are names or numbers rather than kinds


@dataclass(frozen=True)
class LabelForm:
    """Where the label is: in this field of the JSON object that each answer is, or (None) the whole answer."""

    field: str | None = None

    def label_of(self, answer: str) -> str:
        """The label as a teacher may read it: the answer, or a JSON object of the field. "" for an answer of
        another form.
        """
        if self.field is None:
            return answer.strip()
        value = _object(answer)
        if value is None or self.field not in value:
            return ""
        return json.dumps({self.field: value[self.field]}, ensure_ascii=False)


def label_form(answers: Sequence[str]) -> LabelForm | None:
    """Where the labels of some reference answers are; None where the task has none that repeat."""
    if len(answers) < LEAST_ROWS:
        return None
    objects = [_object(answer) for answer in answers]
    found = [one for one in objects if one is not None]
    if len(found) == len(answers):
        # Of several such fields the one with the most values: few rows have all combinations of them by chance.
        sizes: dict[str, int] = {}
        for field in found[0]:
            if all(field in one and not isinstance(one[field], dict | list) for one in found):
                values = [json.dumps(one[field], ensure_ascii=False) for one in found]
                if _repeat(values, MOST_VALUES):
                    sizes[field] = len(set(values))
        return LabelForm(max(sizes, key=lambda field: sizes[field])) if sizes else None
    return LabelForm() if _repeat([answer.strip() for answer in answers], MOST_LABELS) else None


def _repeat(values: Sequence[str], most: int) -> bool:
    """Whether nearly all of the values are short ones that occur again."""
    counts = Counter(values)
    again = sum(count for count in counts.values() if count > 1)
    return (
        2 <= len(counts) <= most
        and max(len(value) for value in counts) <= LABEL_CHARS
        and again >= REPEATED_SHARE * len(values)
    )


def _object(text: str) -> dict[str, JsonValue] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
