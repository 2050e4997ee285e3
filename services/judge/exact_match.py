"""Exact match: whether an answer is the reference. Free, instant, and needs no service LLM."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from llamaduo.built_in_evaluators import EXACT_MATCH, METRICS
from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Evaluator, Score, Task

NAME = EXACT_MATCH
METRIC = "exact"

_MOST_FIELDS = 8
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")
_MISSING = object()


def compare(reference: str, candidate: str) -> tuple[bool, str]:
    """Whether the candidate equals the reference, and a reason that holds no value of either.

    A reference that is JSON is compared as a JSON value: spaces and the order of keys do not count, 1 equals 1.0.
    Any other is compared as text without the spaces around it.
    """
    expected = _json(reference)
    if expected is _MISSING:
        same = reference.strip() == candidate.strip()
        return same, "the texts are equal" if same else "the texts differ"
    given = _json(candidate)
    if given is _MISSING:
        return False, "the answer is not one JSON value"
    found = _differences(expected, given, "")
    if not found:
        return True, "all fields are equal"
    names = list(dict.fromkeys(name for name, _ in found if name))
    shown = ", ".join(names[:_MOST_FIELDS])
    more = f" and {len(names) - _MOST_FIELDS} more" if len(names) > _MOST_FIELDS else ""
    unasked = sum(kind == "unasked" for _, kind in found)
    parts = [f"differing: {shown}{more}"] if names else []
    parts += [f"{unasked} fields that the reference does not have"] if unasked else []
    return False, "; ".join(parts) or "the values differ"


async def score(rows: Sequence[ShardRow], _task: Task) -> list[Score]:
    """One mark, 0 or 1, for each answer; abstains where there is no answer to mark."""
    return [_scored(row, sample, answer) for row in rows for sample, answer in enumerate(row.answers)]


def exact_match() -> Evaluator:
    """The evaluator `exact-match` with its one metric, `exact`."""
    return Evaluator(name=NAME, version="1", metrics=METRICS[NAME], score=score)


def _scored(row: ShardRow, sample: int, answer: str | None) -> Score:
    if answer is None:
        return Score(row.row, METRIC, None, sample, "there is no answer to mark")
    same, reason = compare(row.reference, answer)
    return Score(row.row, METRIC, float(same), sample, reason)


def _json(text: str) -> Any:
    """The one JSON value a text is, or `_MISSING`. Repeated keys, NaN and infinity are not JSON here."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("a key is repeated")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError):
        return _MISSING


def _differences(expected: Any, given: Any, path: str) -> list[tuple[str, str]]:
    """(path, kind) of each place where two JSON values differ; the path is empty where it must not be told."""
    if isinstance(expected, dict) and isinstance(given, dict):
        found = [
            difference
            for key in expected
            for difference in (
                _differences(expected[key], given[key], _below(path, key))
                if key in given
                else [(_below(path, key), "missing")]
            )
        ]
        return found + [("", "unasked") for key in given if key not in expected]
    if isinstance(expected, list) and isinstance(given, list) and len(expected) == len(given):
        return [
            difference
            for one, other in zip(expected, given, strict=True)
            for difference in _differences(one, other, f"{path}[]")
        ]
    alike = isinstance(expected, bool) == isinstance(given, bool) and expected == given
    return [] if alike else [(path, "differs")]


def _below(path: str, key: str) -> str:
    """The dotted path of a field; a key that is no plain name may be data and is not told."""
    if not _PLAIN_NAME.fullmatch(key):
        return path or "a field"
    return f"{path}.{key}" if path else key
