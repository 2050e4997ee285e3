"""What a test set of this size can tell from each thing that the gate asks, and how many rows would tell half."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.built_in_evaluators import CHRF, METRICS, NOISY, ROUGE_L
from llamaduo.event_parts import MetricRange
from llamaduo.migrations.best_case import right_of
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.resolution import alpha_of_look, prompts_for, smallest_gap
from llamaduo.migrations.spec import MigrationSpec

GRADED_SPREAD = 0.22
"""Assumed standard deviation of a judge's marks over prompts, on [0, 1]."""
DIFFERING = 0.10
"""Assumed share of prompts on which one of two equally good models gets a yes/no mark and the other does not."""
GRADED = (CHRF, ROUGE_L)
"""Evaluators that mark by degrees although their scale ends at 1."""
YES_NO = MetricRange(low=0, high=1)


class Telling(BaseModel):
    """What can be told from one thing that the gate asks, in round 0 and in nine of ten cases, on its own scale.

    For parity `gap` is the smallest margin at which a model that is as good as the service LLM passes.
    """

    model_config = ConfigDict(frozen=True)
    what: str
    asked: float = Field(description="the threshold or margin")
    gap: float
    rows_for_half: int | None
    unit: str = Field("", description="what the figures are in; empty: the metric's own scale")
    right: int | None = Field(None, description="of yes/no marks, how many must be right to pass by the last row")
    assumed: str = Field(description="how far marks were assumed to spread")


def telling_of(spec: MigrationSpec, test: int) -> list[Telling]:
    """For each absolute threshold, and for parity."""
    alpha = alpha_of_look(spec, 0, NOISY)
    found = []
    for key, threshold in spec.gate.absolute.items():
        evaluator, _, metric = key.partition(".")
        scale = METRICS.get(evaluator, {}).get(metric)
        if scale is None:  # an own evaluator's scale is known once it marks
            continue
        share, width = to_unit(threshold, scale), scale.high - scale.low
        yes_no = is_yes_no(evaluator, scale)
        spread = math.sqrt(share * (1 - share)) if yes_no else GRADED_SPREAD
        gap = smallest_gap(spread, test, alpha)
        found.append(
            Telling(
                what=key,
                asked=threshold,
                gap=gap * width,
                rows_for_half=prompts_for(spread, gap / 2, alpha),
                right=right_of(test, share, alpha) if yes_no else None,
                assumed="yes/no marks" if yes_no else f"marks that spread by {GRADED_SPREAD * width:g}",
            )
        )
    if spec.gate.parity is not None:
        scales = [(name, scale) for name in spec.required for scale in METRICS.get(name, {"": YES_NO}).values()]
        yes_no = any(is_yes_no(name, scale) for name, scale in scales)
        spread = parity_spread(yes_no=yes_no)
        gap = smallest_gap(spread, test, alpha)
        found.append(
            Telling(
                what="parity",
                asked=spec.gate.parity.margin,
                gap=min(200 * gap, 100.0),
                rows_for_half=prompts_for(spread, gap / 2, alpha),
                unit="points",
                assumed=f"yes/no marks that differ on {DIFFERING:.0%} of the prompts"
                if yes_no
                else f"marks that differ by some {100 * GRADED_SPREAD:g} points",
            )
        )
    return found


def is_yes_no(evaluator: str, scale: MetricRange) -> bool:
    """Whether marks on this scale are to be taken for yes or no, which spread the widest."""
    return scale.high - scale.low <= 1 and evaluator not in GRADED


def parity_spread(*, yes_no: bool) -> float:
    """Assumed standard deviation of paired differences, scaled from [-1, 1] to [0, 1]."""
    return (math.sqrt(DIFFERING) if yes_no else GRADED_SPREAD) / 2
