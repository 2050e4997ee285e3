"""Exact match: whether an answer is the reference. Free, instant, and needs no service LLM."""

from __future__ import annotations

from llamaduo.built_in_evaluators import EXACT_MATCH, METRICS
from llamaduo.evaluators import Evaluator
from llamaduo.json_values import MISSING, json_value
from services.judge.each_answer import each_answer
from services.judge.json_values import differences, listed
from services.judge.options import check_options

NAME = EXACT_MATCH
METRIC = "exact"


def compare(reference: str, candidate: str) -> tuple[bool, str]:
    """Whether the candidate equals the reference, and a reason that holds no value of either.

    A reference that is JSON is compared as a JSON value: spaces and the order of keys do not count, 1 equals 1.0.
    Any other is compared as text without the spaces around it.
    """
    expected = json_value(reference)
    if expected is MISSING:
        same = reference.strip() == candidate.strip()
        return same, "the texts are equal" if same else "the texts differ"
    given = json_value(candidate)
    if given is MISSING:
        return False, "the answer is not one JSON value"
    found = differences(expected, given, "")
    if not found:
        return True, "all fields are equal"
    shown = listed([name for name, _ in found])
    unasked = sum(kind == "unasked" for _, kind in found)
    parts = [f"differing: {shown}"] if shown else []
    parts += [f"{unasked} fields that the reference does not have"] if unasked else []
    return False, "; ".join(parts) or "the values differ"


def exact_match() -> Evaluator:
    """The evaluator `exact-match` with its one metric, `exact`; it abstains where there is no answer to mark."""
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer(
            (METRIC,),
            lambda row, answer, _: _marks(row.reference, answer),
            check=lambda options: check_options(NAME, options, ()),
        ),
    )


def _marks(reference: str, answer: str) -> tuple[dict[str, float], str]:
    same, reason = compare(reference, answer)
    return {METRIC: float(same)}, reason
