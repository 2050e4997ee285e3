"""Answers a judge's prompt by comparing the fields of two JSON records.

The prompt has three fenced sections: <instruction>, <reference>, <candidate>. The candidate is data, never
read as words: it comes last and ends at the last closing fence, so nothing inside it can move a fence that
counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from services.emulator.likeness import likeness
from services.emulator.teacher import understand

_NOT_JSON_AT_MOST = 10


@dataclass(frozen=True)
class Marks:
    """Marks from 0 to 100, each with a reason that never quotes the candidate."""

    similarity_reason: str
    similarity: int
    precision_reason: str
    precision: int

    def as_json(self) -> str:
        """One compact line with the four keys of the judge's schema."""
        return json.dumps(
            {
                "similarity_reason": self.similarity_reason,
                "similarity": self.similarity,
                "precision_reason": self.precision_reason,
                "precision": self.precision,
            },
            separators=(",", ":"),
        )


def _section(prompt: str, name: str, start: int, *, to_last: bool = False) -> tuple[str, int] | None:
    """(text, where it ends) of the first section `name` at or after `start`."""
    opening, closing = f"<{name}>", f"</{name}>"
    begin = prompt.find(opening, start)
    if begin < 0:
        return None
    begin += len(opening)
    end = prompt.rfind(closing, begin) if to_last else prompt.find(closing, begin)
    if end < 0:
        return None
    return prompt[begin:end].strip(), end + len(closing)


def sections(prompt: str) -> tuple[str, str] | None:
    """(reference, candidate) of a judge prompt; None where a section is missing."""
    instruction = _section(prompt, "instruction", 0)
    reference = _section(prompt, "reference", instruction[1] if instruction else 0)
    candidate = _section(prompt, "candidate", reference[1], to_last=True) if reference else None
    if reference is None or candidate is None:
        return None
    return reference[0], candidate[0]


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _record(text: str) -> dict[str, str] | None:
    """The fields of a JSON object, each value as canonical JSON text; None where the text is none."""
    try:
        parsed: object = json.loads(text, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    return {str(key): json.dumps(value, sort_keys=True) for key, value in parsed.items()}


def compare(reference: str, candidate: str) -> Marks:
    """Marks the candidate against the reference.

    similarity: share of all fields of either record that are equal. precision: share of the candidate's own
    fields that are right. A reference that is no JSON object is compared as text.
    """
    expected = _record(reference)
    if expected is None:
        alike = round(likeness(reference, candidate))
        return Marks("Compared as text.", alike, "Compared as text.", alike)
    given = _record(candidate)
    if given is None:
        low = min(_NOT_JSON_AT_MOST, round(likeness(reference, candidate) / 10))
        reason = "The answer is not one JSON object."
        return Marks(reason, low, reason, low)
    equal = [key for key in expected if given.get(key) == expected[key]]
    differing = [key for key in expected if key not in equal]
    extra = len(given.keys() - expected.keys())
    fields = len(expected) + extra
    similarity = round(100 * len(equal) / fields) if fields else 100
    precision = round(100 * len(equal) / len(given)) if given else (100 if not expected else 0)
    notes = f"{len(equal)} of {len(expected)} fields are equal"
    notes += f"; differing: {', '.join(differing)}" if differing else ""
    notes += f"; {extra} fields too many" if extra else ""
    right = f"{len(equal)} of the answer's {len(given)} fields are right."
    return Marks(notes + ".", similarity, right, precision)


@dataclass(frozen=True)
class Preference:
    """Which of two answers is better, with a reason that quotes neither."""

    reason: str
    better: Literal["first", "second", "neither"]

    def as_json(self) -> str:
        """One compact line with the two keys of the judge's schema."""
        return json.dumps({"reason": self.reason, "better": self.better}, separators=(",", ":"))


def prefer(prompt: str) -> Preference:
    """The better of the sections <first> and <second>, by what the teacher itself says to <instruction>."""
    instruction = _section(prompt, "instruction", 0)
    first = _section(prompt, "first", instruction[1]) if instruction else None
    second = _section(prompt, "second", first[1], to_last=True) if first else None
    if instruction is None or first is None or second is None:
        return Preference("The prompt has no complete instruction and answers.", "neither")
    right = understand(instruction[0]).as_json()
    one, other = (compare(right, text).similarity for text in (first[0], second[0]))
    if one == other:
        return Preference("Both have as many fields right.", "neither")
    better: Literal["first", "second"] = "first" if one > other else "second"
    return Preference("The other has fewer fields right.", better)


def mark(prompt: str) -> Marks:
    """Marks for a judge prompt; zero with a reason where its sections cannot be found."""
    found = sections(prompt)
    if found is None:
        reason = "The prompt has no complete reference and candidate sections."
        return Marks(reason, 0, reason, 0)
    return compare(*found)
