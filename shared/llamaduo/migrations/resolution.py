"""How fine a difference a test set can tell, and how many prompts a finer one takes.

For the verdict's own way of deciding, which may look after every shard and spends its error over rounds: it needs
about five times the prompts of a single look at a fixed number. The figures are approximations, checked against
simulation; the promised error rate does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import NormalDist

from llamaduo.migrations.spec import MigrationSpec

TOLD_IN = 0.9
"""Share of cases in which a difference of the size named here is told."""
_LOST_BY_BETTING = 1.5
"""Log of what is lost by not knowing beforehand how much to bet; measured with marks that spread 0.1 to 0.46."""


def alpha_of_round(confidence: float, number: int) -> float:
    """The error spent on round `number` (0-based): (1 - confidence) * 6 / (pi^2 * (number + 1)^2), summing to all."""
    return (1 - confidence) * 6 / (math.pi**2 * (number + 1) ** 2)


def alpha_of_look(spec: MigrationSpec, number: int, noisy: Collection[str]) -> float:
    """The error that one look at round `number` may spend: first marks and each repeat allowed share it equally.

    `noisy` are the evaluators that can be asked again; where none of them decides there is one look. Several base
    models are as many chances to pass by luck, so they share it too.
    """
    looks = 1 + (spec.marking.repeats if any(name in noisy for name in spec.awaited) else 0)
    return alpha_of_round(spec.gate.confidence, number) / looks / len(spec.bases)


def spread_of(shares: Sequence[float]) -> float:
    """Standard deviation of marks on [0, 1] over prompts.

    One mark at each end is added, so that a few equal marks are not taken for marks that never differ.
    """
    values = [0.0, 1.0, *shares]
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def smallest_gap(spread: float, prompts: int, alpha: float) -> float:
    """The smallest distance from the gate, on [0, 1], that so many prompts tell in `TOLD_IN` of cases.

    `spread` is the standard deviation over prompts on [0, 1], `alpha` the error allowed on one side. At most 1.
    ValueError without prompts.
    """
    if prompts < 1:
        raise ValueError("a test set without prompts tells nothing")
    return min(1.0, _needed(alpha) * spread / math.sqrt(prompts))


def prompts_for(spread: float, gap: float, alpha: float) -> int | None:
    """About how many prompts tell a distance of `gap` from the gate; None where there is no distance."""
    if gap < 1e-6:
        return None
    return max(1, math.ceil((_needed(alpha) * spread / gap) ** 2))


def _needed(alpha: float) -> float:
    """Distance from the gate in standard errors: log wealth must reach log(1/alpha) although it varies by chance."""
    z = NormalDist().inv_cdf(TOLD_IN)
    return z + math.sqrt(z * z + 2 * (math.log(1 / alpha) + _LOST_BY_BETTING))
