"""How far those who mark agree: with each other, and each with itself when asked again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llamaduo.events import EvalScored


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for interval data: 1 full agreement, 0 what chance gives, below 0 worse than chance.

    Each unit holds the marks that one answer got, all on one scale; units with fewer than two are left out. None
    where nothing can be paired or all marks are equal. (K. Krippendorff, Content Analysis, chapter on reliability.)
    """
    pairable = [unit for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    if not values:
        return None
    expected = _squared_differences(values) / (len(values) - 1)
    if expected <= 1e-12:
        return None
    observed = math.fsum(_squared_differences(unit) / (len(unit) - 1) for unit in pairable)
    return 1 - observed / expected


def _squared_differences(values: Sequence[float]) -> float:
    """Sum over all ordered pairs of the squared difference."""
    centre = math.fsum(values) / len(values)
    return 2 * len(values) * math.fsum((value - centre) ** 2 for value in values)


def repeated_marks(scored: Iterable[EvalScored]) -> dict[str, dict[tuple[str, str, str, int], list[float]]]:
    """metric -> (candidate, split, row, sample) -> the marks that one evaluator gave to that answer, in any order."""
    marks: dict[str, dict[tuple[str, str, str, int], list[float]]] = {}
    for event in scored:
        for mark in event.marks:
            if mark.value is not None:
                answer = (event.candidate.key, event.split, mark.row, mark.sample)
                marks.setdefault(mark.metric, {}).setdefault(answer, []).append(mark.value)
    return marks


def noise_of(repeated: Iterable[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation of one evaluator's marks for one and the same answer, and how many answers show it.

    Pooled over answers marked more than once; None where there are none. On the marks' own scale.
    """
    groups = [marks for marks in repeated if len(marks) > 1]
    if not groups:
        return None
    squares = math.fsum(_squared_differences(marks) / (2 * len(marks)) for marks in groups)
    return math.sqrt(squares / sum(len(marks) - 1 for marks in groups)), len(groups)
