"""Pass, fail or undecided: the gate against the marks of one round, decided on the unbroken prefix of shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamaduo.events import EvalScored, FailingRow, Interval, Marks, MetricRange
from llamaduo.migrations.intervals import from_unit, to_unit
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.marks import MetricKey, RowMarks, ranges_of, rows_of
from services.verdict.statistics import Wealth, alpha_of_round, confidence_sequence

MOST_ABSTAINED = 0.1
"""Share of prompts without a mark beyond which a round cannot pass."""
FAILURES_IN_EVENT = 100
ROUNDING = 1e-9
"""How far below 1 the mean of best marks may be calculated."""


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


@dataclass
class Veto:
    """A metric that must be at its best for every prompt."""

    metric: MetricKey
    marked: int = 0
    violations: int = 0
    abstained: int = 0

    def take(self, share: float | None) -> bool:
        """One more prompt, on [0, 1]; whether it is a violation. Of several answers each must be at its best."""
        if share is None:
            self.abstained += 1
            return False
        self.marked += 1
        violated = share < 1 - ROUNDING
        self.violations += violated
        return violated

    @property
    def trusted(self) -> bool:
        """Whether few enough prompts went unmarked."""
        return self.marked > 0 and self.abstained <= MOST_ABSTAINED * (self.marked + self.abstained)

    @property
    def told(self) -> str:
        """What it found, in words."""
        name = ".".join(self.metric)
        if self.violations:
            return f"{name} vetoes: {self.violations} of {self.marked} prompts violate it"
        return f"{name}: no violation in {self.marked} prompts"


@dataclass(frozen=True)
class Outcome:
    """What the marks so far say. `waiting`: more marks are needed and can still come."""

    verdict: Literal["passed", "failed", "undecided", "waiting"]
    marks: Marks = field(default_factory=dict)
    failures: list[FailingRow] = field(default_factory=list)
    rows: int = 0
    note: str = ""


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


def vetoes_of(spec: MigrationSpec, ranges: dict[MetricKey, MetricRange]) -> list[Veto]:
    """Every metric of the evaluators with a veto. ValueError for one that declares none: it could never object."""
    vetoes = [Veto(key) for key in sorted(ranges) if key[0] in spec.vetoes]
    for name in spec.vetoes:
        if name not in {veto.metric[0] for veto in vetoes}:
            raise ValueError(f"evaluator {name!r} has a veto and declares no metric")
    return vetoes


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
    criteria = criteria_of(spec, ranges) if local else []
    vetoes = vetoes_of(spec, ranges) if local else []
    alpha = alpha_of_round(spec.gate.confidence, number)
    paired = any(c.paired for c in criteria)
    seen: list[RowMarks] = []
    failures: list[FailingRow] = []
    failed = False
    for shard in range(of):
        if shard not in local or (paired and shard not in service):
            return Outcome("waiting")
        bars = {row.row: row for row in rows_of({shard: service[shard]})} if paired else {}
        for row in rows_of({shard: local[shard]}):
            seen.append(row)
            failing = _take_row(row, bars.get(row.row), criteria, vetoes, ranges)
            if failing is not None:
                failures.append(failing)
        failed = failed or any(veto.violations for veto in vetoes)
        certain = all(c.above.sure(alpha) and c.trusted for c in criteria)
        if not failed and certain and all(veto.trusted for veto in vetoes):
            return _outcome("passed", seen, failures, ranges, alpha, _told(vetoes))
        # Failing on any criterion is as many chances to be wrong as there are criteria: they share the error.
        failed = failed or any(c.below.sure(alpha / len(criteria)) for c in criteria)
        if failed and len(failures) >= spec.marking.failures_wanted:
            return _outcome("failed", seen, failures, ranges, alpha, _told(v for v in vetoes if v.violations))
    if failed:
        return _outcome("failed", seen, failures, ranges, alpha, _told(v for v in vetoes if v.violations))
    note = "the test set is too small to tell: the interval holds the gate"
    if not (all(c.trusted for c in criteria) and all(veto.trusted for veto in vetoes)):
        note = "too many answers went unmarked to pass"
    return _outcome("undecided", seen, failures, ranges, alpha, note)


def _take_row(
    row: RowMarks,
    bar: RowMarks | None,
    criteria: Sequence[Criterion],
    vetoes: Sequence[Veto],
    ranges: dict[MetricKey, MetricRange],
) -> FailingRow | None:
    """Feed one prompt to all that is asked; the row as a failing one if it is below any threshold or vetoed."""
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
    for veto in vetoes:
        value = row.values.get(veto.metric)
        share = None if value is None else to_unit(value, ranges[veto.metric])
        if share is not None:
            shares.append(share)
        failing = veto.take(share) or failing
    if not failing:
        return None
    return FailingRow(row=row.row, mark=sum(shares) / len(shares) if shares else 0.0, reasons=row.reasons[:4])


def _told(vetoes: Iterable[Veto]) -> str:
    return "; ".join(veto.told for veto in vetoes)


def _outcome(
    verdict: Literal["passed", "failed", "undecided"],
    rows: Sequence[RowMarks],
    failures: list[FailingRow],
    ranges: dict[MetricKey, MetricRange],
    alpha: float,
    note: str,
) -> Outcome:
    worst = sorted(failures, key=lambda f: (f.mark, f.row))[:FAILURES_IN_EVENT]
    return Outcome(verdict, marks_with_intervals(rows, ranges, alpha), worst, len(rows), note)


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
