"""Pass, fail or undecided: the gate against the marks of one round, decided on the unbroken prefix of shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamaduo.events import EvalScored, FailingRow, Interval, Marks, MetricRange
from llamaduo.migrations.resolution import alpha_of_round
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.marks import MetricKey, RowMarks, from_unit, ranges_of, rows_of, to_unit
from services.verdict.statistics import Wealth, confidence_sequence

MOST_ABSTAINED = 0.1
"""Share of prompts without a mark beyond which a round cannot pass."""
FAILURES_IN_EVENT = 100


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
        total = len(self.values) + self.abstained
        return total > 0 and self.abstained <= MOST_ABSTAINED * total


@dataclass(frozen=True)
class Outcome:
    """What the marks so far say. `waiting`: more marks are needed and can still come."""

    verdict: Literal["passed", "failed", "undecided", "waiting"]
    seen: Sequence[RowMarks] = ()
    ranges: dict[MetricKey, MetricRange] = field(default_factory=dict)
    alpha: float = 0.05
    failures: list[FailingRow] = field(default_factory=list)
    sure_after: int = 0
    """Prompts after which passed or failed was certain; 0: it never was."""
    more: float = math.inf
    """While waiting: about how many more prompts it takes; infinite where nothing points to an end."""
    note: str = ""

    @property
    def rows(self) -> int:
        """Prompts that were looked at."""
        return len(self.seen)

    @property
    def marks(self) -> Marks:
        """Means and intervals; computed when asked for, since that costs more than deciding."""
        return marks_with_intervals(self.seen, self.ranges, self.alpha)


def criteria_of(spec: MigrationSpec, ranges: dict[MetricKey, MetricRange]) -> list[Criterion]:
    """What the gate asks, once the metrics' ranges are known. ValueError for a metric nobody declared."""
    criteria = []
    for key, threshold in sorted(spec.gate.absolute.items()):
        evaluator, metric = key.split(".")
        limits = ranges.get((evaluator, metric))
        if limits is None:
            known = ", ".join(sorted(f"{e}.{m}" for e, m in ranges))
            raise ValueError(f"the gate asks for {key}, which no evaluator gives; there are: {known}")
        criteria.append(Criterion(key, (evaluator, metric), _clip(to_unit(threshold, limits)), paired=False))
    if spec.gate.parity is not None:
        bar = _clip((1 - spec.gate.parity.margin / 100) / 2)
        criteria += [
            Criterion(f"parity of {e}.{m}", (e, m), bar, paired=True) for e, m in sorted(ranges) if e in spec.required
        ]
    return criteria


def judge_round(
    spec: MigrationSpec,
    number: int,
    of: int,
    local: dict[int, list[EvalScored]],
    service: dict[int, list[EvalScored]],
) -> Outcome:
    """Decide round `number` from its marked shards (`of` in all), in shard order, as soon as it is certain.

    `service` holds the service LLM's marks for the same shards, used where parity is asked. The answer depends
    only on the unbroken prefix, so any replica, at any time, gives the same one.
    """
    ranges = ranges_of([s for shards in local.values() for s in shards])
    criteria = criteria_of(spec, ranges) if ranges else []
    alpha = alpha_of_round(spec.gate.confidence, number)
    paired = any(c.paired for c in criteria)
    seen: list[RowMarks] = []
    failures: list[FailingRow] = []
    sure_after = 0

    def outcome(verdict: Literal["passed", "failed", "undecided"], note: str = "") -> Outcome:
        worst = sorted(failures, key=lambda f: (f.mark, f.row))[:FAILURES_IN_EVENT]
        return Outcome(verdict, seen, ranges, alpha, worst, sure_after, note=note)

    for shard in range(of):
        if shard not in local or (paired and shard not in service):
            missing = spec.marking.failures_wanted - len(failures)
            more = missing * len(seen) / max(1, len(failures)) if sure_after else _more_needed(criteria, alpha)
            return Outcome("waiting", seen, more=more)
        bars = {row.row: row for row in rows_of({shard: service[shard]})} if paired else {}
        for row in rows_of({shard: local[shard]}):
            seen.append(row)
            failing = _take_row(row, bars.get(row.row), criteria, ranges)
            if failing is not None:
                failures.append(failing)
        if not sure_after and all(c.above.sure(alpha) and c.trusted for c in criteria):
            sure_after = len(seen)
            return outcome("passed")
        # Failing on any criterion is as many chances to be wrong as there are criteria: they share the error.
        if not sure_after and any(c.below.sure(alpha / len(criteria)) for c in criteria):
            sure_after = len(seen)
        if sure_after and len(failures) >= spec.marking.failures_wanted:
            return outcome("failed")
    if sure_after:
        return outcome("failed")
    if any(not c.trusted for c in criteria):
        return outcome("undecided", "too many answers went unmarked to pass")
    return outcome("undecided", "the test set is too small to tell: the interval holds the gate")


def _more_needed(criteria: Sequence[Criterion], alpha: float) -> float:
    """About how many more prompts a verdict takes: to pass on the slowest criterion, or to fail on the fastest."""
    if not criteria:
        return math.inf
    to_pass = max(c.above.more_needed(alpha) for c in criteria)
    to_fail = min(c.below.more_needed(alpha / len(criteria)) for c in criteria)
    return min(to_pass, to_fail)


def _take_row(
    row: RowMarks, bar: RowMarks | None, criteria: Sequence[Criterion], ranges: dict[MetricKey, MetricRange]
) -> FailingRow | None:
    """Feed one prompt to every criterion; the row as a failing one if it is below any threshold."""
    shares: list[float] = []
    failing = False
    for criterion in criteria:
        value = row.values.get(criterion.metric)
        share = None if value is None else to_unit(value, ranges[criterion.metric])
        if share is not None:
            shares.append(share)
        if criterion.paired:
            other = None if bar is None else bar.values.get(criterion.metric)
            if share is not None:
                share = None if other is None else (share - to_unit(other, ranges[criterion.metric]) + 1) / 2
        criterion.take(share)
        failing = failing or (share is not None and share < criterion.threshold)
    if not failing:
        return None
    return FailingRow(row=row.row, mark=sum(shares) / len(shares) if shares else 0.0, reasons=row.reasons[:4])


def marks_with_intervals(rows: Sequence[RowMarks], ranges: dict[MetricKey, MetricRange], alpha: float) -> Marks:
    """Mean and anytime-valid interval of every metric, on its own scale."""
    marks: Marks = {}
    for (evaluator, metric), limits in sorted(ranges.items()):
        values = [v for row in rows if (v := row.values.get((evaluator, metric))) is not None]
        if not values:
            continue
        shares = [to_unit(v, limits) for v in values]
        low, high = sorted(from_unit(share, limits) for share in confidence_sequence(shares, alpha))
        mean = sum(values) / len(values)
        marks.setdefault(evaluator, {})[metric] = Interval(mean=mean, low=low, high=high, n=len(values))
    return marks


def _clip(share: float) -> float:
    return min(1.0, max(0.0, share))
