"""Whether marking once more can decide a round: only where the judge's own noise is what keeps it open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance

from llamaduo.event_parts import MetricRange
from llamaduo.events import EvalScored
from llamaduo.migrations.agreement import noise_of, repeated_marks
from services.verdict.criteria import Criterion
from services.verdict.marks import MetricKey


def noisy_evaluators(local: Mapping[int, Sequence[EvalScored]]) -> list[str]:
    """Evaluators that call themselves noisy, by the first shard: later ones must not change how error is spent."""
    return sorted({scored.evaluator for scored in local.get(0, ()) if scored.noisy})


def marked_again(
    local: Mapping[int, list[EvalScored]], noisy: Sequence[str], repeat: int
) -> dict[int, list[EvalScored]]:
    """Shards with all marks up to this repeat, without later ones. Repeat 0 is the first marking."""
    wanted = {(name, number) for name in noisy for number in range(1, repeat + 1)}
    return {
        shard: [one for one in scored if one.repeat <= repeat]
        for shard, scored in local.items()
        if wanted <= {(one.evaluator, one.repeat) for one in scored}
    }


def noise_by_metric(scored: Sequence[EvalScored], ranges: Mapping[MetricKey, MetricRange]) -> dict[MetricKey, float]:
    """Variance of marks for one and the same answer, on [0, 1]; nothing for metrics that nobody marked twice."""
    found: dict[MetricKey, float] = {}
    for evaluator in {one.evaluator for one in scored}:
        marks = repeated_marks(one for one in scored if one.evaluator == evaluator)
        for metric, answers in marks.items():
            noise, limits = noise_of(answers.values()), ranges[evaluator, metric]
            if noise is not None:
                found[evaluator, metric] = (noise[0] / (limits.high - limits.low)) ** 2
    return found


def could_decide(
    criteria: Sequence[Criterion],
    noise: Mapping[MetricKey, float] | None,
    *,
    repeats: int,
    samples: int,
    alpha: float,
) -> bool:
    """Whether so many repeats of every prompt might make a round certain that its first marks left undecided.

    `criteria` have taken all first marks; `noise` is what `noise_by_metric` found, None before anything was marked
    again: then all spread may be noise. An upper estimate: the log wealth of the best bet grows by
    gap^2 / (2 variance) a prompt, and repeats take a share of the noise out of that variance.
    """

    def reaches(criterion: Criterion, alpha: float, *, above: bool) -> bool:
        wealth = criterion.above if above else criterion.below
        if wealth.sure(alpha):
            return True
        if len(criterion.values) < 2:
            return False
        gap, spread = fmean(criterion.values) - criterion.threshold, pvariance(criterion.values)
        if (gap > 0) != above or spread <= 0:
            return False
        own = spread
        if noise is not None:
            # A paired difference is halved to lie on [0, 1], so its variance is a quarter.
            own = noise.get(criterion.metric, 0.0) / samples / (4 if criterion.paired else 1)
        left = max(0.05 * spread, spread - own * repeats / (repeats + 1))
        gain = len(criterion.values) * gap * gap / 2 * (1 / left - 1 / spread)
        return gain > 0 and wealth.log + gain >= math.log(1 / alpha)

    return all(reaches(c, alpha, above=True) for c in criteria) or any(
        reaches(c, alpha / len(criteria), above=False) for c in criteria
    )
