"""What the gate asks of a mean, and the two gamblers who bet on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamaduo.event_parts import MetricRange
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.marks import MetricKey
from services.verdict.statistics import Wealth

MOST_ABSTAINED = 0.1
"""Share of prompts without a mark beyond which a round cannot pass."""


def enough_marked(marked: int, abstained: int) -> bool:
    """Whether so many marked prompts may stand for all, with so many that nobody marked."""
    return marked > 0 and abstained <= MOST_ABSTAINED * (marked + abstained)


@dataclass
class Criterion:
    """One thing the gate asks of the mean, on [0, 1]."""

    name: str
    metric: MetricKey
    threshold: float
    paired: bool
    values: list[float] = field(default_factory=list)
    abstained: int = 0

    def __post_init__(self) -> None:
        self.above = Wealth(self.threshold, above=True)
        self.below = Wealth(self.threshold, above=False)

    def take(self, value: float | None) -> None:
        """One more prompt."""
        if value is None:
            self.abstained += 1
            return
        self.values.append(value)
        self.above.take(value)
        self.below.take(value)

    @property
    def trusted(self) -> bool:
        """Whether few enough prompts went unmarked."""
        return enough_marked(len(self.values), self.abstained)


def criteria_of(spec: MigrationSpec, ranges: dict[MetricKey, MetricRange]) -> list[Criterion]:
    """What the gate asks, once the metrics' ranges are known.

    ValueError for a metric nobody declared, a threshold that is not on its metric's scale, and a gate that asks
    nothing of the metrics there are: it would pass anything.
    """
    criteria = []
    for key, threshold in sorted(spec.gate.absolute.items()):
        evaluator, metric = key.split(".")
        limits = ranges.get((evaluator, metric))
        if limits is None:
            known = ", ".join(sorted(f"{e}.{m}" for e, m in ranges))
            raise ValueError(f"the gate asks for {key}, which no evaluator gives; there are: {known}")
        criteria.append(Criterion(key, (evaluator, metric), to_unit(threshold, limits), paired=False))
    if spec.gate.parity is not None:
        bar = (1 - spec.gate.parity.margin / 100) / 2
        criteria += [
            Criterion(f"parity of {e}.{m}", (e, m), bar, paired=True) for e, m in sorted(ranges) if e in spec.required
        ]
    if not criteria:
        raise ValueError("the required evaluators declare no metric: there is nothing to hold against the gate")
    return criteria
