"""Confidence intervals for what is only reported: one look at a fixed number of prompts.

The verdict looks after every shard and therefore uses wider, anytime-valid intervals of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

from llamaduo.event_parts import Interval, Marks, MetricRange
from llamaduo.events import EvalScored


def to_unit(value: float, scale: MetricRange) -> float:
    """A mark on [0, 1], higher is better. ValueError for an empty scale or a mark that is not on it."""
    if scale.high <= scale.low:
        raise ValueError(f"a metric was declared from {scale.low:g} to {scale.high:g}, which is no scale")
    if not scale.low <= value <= scale.high:
        raise ValueError(f"{value:g} is not on its metric's scale, {scale.low:g} to {scale.high:g}")
    share = (value - scale.low) / (scale.high - scale.low)
    return share if scale.higher_is_better else 1 - share


def from_unit(share: float, scale: MetricRange) -> float:
    """The inverse of `to_unit`."""
    share = share if scale.higher_is_better else 1 - share
    return scale.low + share * (scale.high - scale.low)


def wilson(values: Sequence[float], scale: MetricRange, confidence: float) -> Interval:
    """Wilson's score interval for the mean of `values`, one value a prompt, on the metric's own scale.

    Marks are scaled to [0, 1] first. No mark on [0, 1] can spread wider than a yes/no mark of the same mean,
    so for graded marks the interval is at least as wide as it needs to be. A value outside the scale counts
    as its nearest end. ValueError without values, on an empty scale, or if `confidence` is not within (0, 1).
    """
    width = scale.high - scale.low
    if not values or width <= 0 or not 0 < confidence < 1:
        raise ValueError("an interval needs values, a scale with low < high, and a confidence within (0, 1)")
    n = len(values)
    shares = [min(1.0, max(0.0, (value - scale.low) / width)) for value in values]
    mean = math.fsum(shares) / n
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(max(0.0, mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
    return Interval(mean=scale.low + mean * width, low=scale.low + low * width, high=scale.low + high * width, n=n)


def mean_by_row(scored: Iterable[EvalScored]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """metric -> row -> mean mark over its samples and repeats; and metric -> marks withheld (abstained)."""
    values: dict[str, dict[str, list[float]]] = {}
    abstained: dict[str, int] = {}
    for event in scored:
        for mark in event.marks:
            if mark.value is None:
                abstained[mark.metric] = abstained.get(mark.metric, 0) + 1
            else:
                values.setdefault(mark.metric, {}).setdefault(mark.row, []).append(mark.value)
    means = {
        metric: {row: math.fsum(marks) / len(marks) for row, marks in rows.items()} for metric, rows in values.items()
    }
    return means, abstained


def scales_of(scored: Iterable[EvalScored]) -> dict[str, MetricRange]:
    """What each metric of one evaluator can be."""
    scales: dict[str, MetricRange] = {}
    for event in scored:
        scales.update(event.metrics)
    return scales


def fixed_marks(by_evaluator: Mapping[str, Sequence[EvalScored]], confidence: float) -> Marks:
    """evaluator -> metric -> Wilson interval over all prompts that it marked."""
    marks: Marks = {}
    for evaluator, scored in by_evaluator.items():
        means, _ = mean_by_row(scored)
        scales = scales_of(scored)
        metrics = {
            metric: wilson(list(rows.values()), scale, confidence)
            for metric, rows in sorted(means.items())
            if (scale := scales.get(metric, MetricRange())).high > scale.low
        }
        if metrics:
            marks[evaluator] = metrics
    return marks
