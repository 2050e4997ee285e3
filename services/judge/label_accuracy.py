"""Label accuracy: whether an answer is the right label, however it is spelled. Free."""

from __future__ import annotations

from collections.abc import Mapping

from llamaduo.built_in_evaluators import LABEL_ACCURACY, METRICS
from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Evaluator
from llamaduo.json_values import MISSING, json_value
from llamaduo.label_spelling import bare, is_short_label, normalised
from services.judge.each_answer import Options, each_answer
from services.judge.options import check_options, text_option

NAME = LABEL_ACCURACY
METRIC = "accuracy"


def compare(reference: str, candidate: str) -> tuple[bool, str]:
    """Whether the candidate is the reference's label; the reason names both only where both look like labels."""
    expected, given = bare(reference), bare(candidate)
    same = normalised(expected) == normalised(given) if expected else reference.strip() == candidate.strip()
    if same:
        return True, "label: the same"
    if is_short_label(expected) and is_short_label(given):
        return False, f"label: said <{given}> instead of <{expected}>"
    return False, "label: the answer is no label" if not is_short_label(given) else "label: another one"


def label_accuracy() -> Evaluator:
    """The evaluator `label-accuracy` with its one metric, `accuracy`.

    Option `field`: the label is this field of an answer that is a JSON object.
    """
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer(
            (METRIC,), _marks, check=lambda options: check_options(NAME, options, ("field",)), labels=labels_of
        ),
    )


def labels_of(row: ShardRow, answer: str, options: Options) -> tuple[str, str] | None:
    """The labels of reference and answer as spelled, for the report's table; None where the reference has none.

    The answer's is empty where it has no label: a long text, or no such field. Where it is the right one it is
    spelled as the reference is.
    """
    field = text_option(NAME, options, "field")
    texts = (row.reference, answer)
    expected, given = (bare(text if field is None else _field(text, field) or "") for text in texts)
    if not is_short_label(expected):
        return None
    if normalised(expected) == normalised(given):
        return expected, expected
    return expected, given if is_short_label(given) else ""


def _marks(row: ShardRow, answer: str, options: Options) -> tuple[Mapping[str, float | None], str]:
    field = text_option(NAME, options, "field")
    if field is None:
        same, reason = compare(row.reference, answer)
        return {METRIC: float(same)}, reason
    expected = _field(row.reference, field)
    if expected is None:
        return {METRIC: None}, f"the reference has no field {field}"
    given = _field(answer, field)
    if given is None:
        return {METRIC: 0.0}, f"the answer has no field {field}"
    same, reason = compare(expected, given)
    return {METRIC: float(same)}, reason


def _field(text: str, field: str) -> str | None:
    value = json_value(text)
    if value is MISSING or not isinstance(value, dict) or field not in value:
        return None
    found = value[field]
    return found if isinstance(found, str) else str(found)
