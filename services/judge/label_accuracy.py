"""Label accuracy: whether an answer is the right label, however it is spelled. Free."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from llamaduo.built_in_evaluators import LABEL_ACCURACY, METRICS
from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Evaluator
from llamaduo.json_values import MISSING, json_value
from services.judge.each_answer import Options, each_answer
from services.judge.options import check_options, text_option

NAME = LABEL_ACCURACY
METRIC = "accuracy"

LONGEST_LABEL = 60
"""Characters up to which an answer may be told in a reason; what is longer is no label but text."""

_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_LABEL = re.compile(r"[^\W_][\w ./&+#-]*")
_AROUND = "\"'`“”‘’«»„* \t\r\n"


def bare(label: str) -> str:
    """A label without width, quotes and a full stop around it, else as it is spelled."""
    return unicodedata.normalize("NFKC", label).strip(_AROUND).removesuffix(".").strip(_AROUND)


def normalised(label: str) -> str:
    """A label without what is mere spelling: case, width, spaces, quotes, a last full stop, `_` or `-` for space."""
    return _SEPARATORS.sub(" ", bare(label)).casefold()


def compare(reference: str, candidate: str) -> tuple[bool, str]:
    """Whether the candidate is the reference's label; the reason names both only where both look like labels."""
    expected, given = bare(reference), bare(candidate)
    same = normalised(expected) == normalised(given) if expected else reference.strip() == candidate.strip()
    if same:
        return True, "label: the same"
    if _is_short_label(expected) and _is_short_label(given):
        return False, f"label: said <{given}> instead of <{expected}>"
    return False, "label: the answer is no label" if not _is_short_label(given) else "label: another one"


def label_accuracy() -> Evaluator:
    """The evaluator `label-accuracy` with its one metric, `accuracy`.

    Option `field`: the label is this field of an answer that is a JSON object.
    """
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer((METRIC,), _marks, check=lambda options: check_options(NAME, options, ("field",))),
    )


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


def _is_short_label(text: str) -> bool:
    return len(text) <= LONGEST_LABEL and _LABEL.fullmatch(text) is not None
