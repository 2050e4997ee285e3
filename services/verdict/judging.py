"""Pass, fail or undecided: the gate against the marks of one round, decided on the unbroken prefix of shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from llamaduo.event_parts import FailingRow, Interval, Marks, MetricRange
from llamaduo.events import EvalScored
from llamaduo.migrations.intervals import from_unit, to_unit
from llamaduo.migrations.resolution import alpha_of_look
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.criteria import Criterion, criteria_of
from services.verdict.marks import MetricKey, RowMarks, ranges_of, rows_of
from services.verdict.repeating import could_decide, marked_again, noise_by_metric, noisy_evaluators
from services.verdict.slices import SliceFloors
from services.verdict.statistics import confidence_sequence
from services.verdict.vetoes import Veto, told, vetoes_of

FAILURES_IN_EVENT = 100


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
    repeat: int = 0
    """While waiting: the repeat that is waited for; 0: the first marks."""
    noisy: Sequence[str] = ()
    """Evaluators to ask for that repeat."""

    @property
    def rows(self) -> int:
        """Prompts that were looked at."""
        return len(self.seen)

    @property
    def marks(self) -> Marks:
        """Means and intervals, each end at the error the verdict may spend, so that a pass lies above its gate.

        Computed when asked for, since that costs more than deciding.
        """
        return marks_with_intervals(self.seen, self.ranges, 2 * self.alpha)


def judge_round(
    spec: MigrationSpec,
    number: int,
    of: int,
    local: dict[int, list[EvalScored]],
    service: dict[int, list[EvalScored]],
    failures_wanted: int | None = None,
    given_up: Collection[tuple[int, int]] = (),
) -> Outcome:
    """Decide round `number` from its marked shards (`of` in all), in shard order, as soon as it is certain.

    After a sure fail it goes on for `failures_wanted` failing rows; None: as many as the spec says.

    `service` holds the service LLM's marks for the same shards, used where parity is asked. The answer depends
    only on the unbroken prefix, so any replica, at any time, gives the same one. Where all first marks leave it
    undecided and `marking.repeats` allows, noisy evaluators are asked again as long as that could decide it. Each
    such look is one more chance to be wrong: they share the round's error. `given_up` are (shard, repeat) that never
    come: what was told before them stands.
    """
    noisy = noisy_evaluators(local)
    alpha = alpha_of_look(spec, number, noisy)
    samples, most = spec.generation.answers, spec.marking.repeats if noisy else 0
    first = Look(spec, alpha, marked_again(local, [], 0), service)
    outcome = first.outcome(of, spec.marking.failures_wanted if failures_wanted is None else failures_wanted)
    for repeat in range(1, most + 1):
        if outcome.verdict != "undecided" or not first.trusted:
            return outcome
        if not could_decide(first.criteria, None, repeats=most, samples=samples, alpha=alpha):
            return outcome
        marked = marked_again(local, noisy, repeat)

        def worth(shard: int, marked: dict[int, list[EvalScored]] = marked) -> bool:
            """Whether going on after this shard, judged by the noise seen up to it, could still decide."""
            scored = [one for n in range(shard + 1) for one in marked[n]]
            noise = noise_by_metric(scored, first.ranges)
            return could_decide(first.criteria, noise, repeats=most, samples=samples, alpha=alpha)

        again = Look(spec, alpha, marked, service, first.seen).outcome(of, 0, worth)
        if again.verdict == "waiting" and _never_comes(marked, repeat, given_up):
            return replace(outcome, note=f"{outcome.note}; marking again was given up")
        if again.verdict == "waiting":
            return replace(again, repeat=repeat, noisy=noisy)
        seen = [*again.seen, *first.seen[len(again.seen) :]]
        outcome = replace(outcome, seen=seen, note=f"{outcome.note}; {len(again.seen)} prompts were marked again")
        if again.verdict != "undecided":
            note = f"certain after {again.sure_after} prompts were marked again"
            note += f"; {again.note}" if again.note else ""
            return replace(outcome, verdict=again.verdict, sure_after=len(first.seen), note=note)
        if len(again.seen) < len(first.seen):  # the judge is not noisy enough for more marks to tell anything
            return outcome
    return outcome


def _never_comes(marked: Mapping[int, object], repeat: int, given_up: Collection[tuple[int, int]]) -> bool:
    """Whether the first shard that lacks one of its repeats lacks it for good."""
    first = next(shard for shard in count() if shard not in marked)
    return any((first, number) in given_up for number in range(1, repeat + 1))


class Look:
    """The gamblers, and what they take from one set of marks; `once` are the first marks where these are repeats."""

    def __init__(
        self,
        spec: MigrationSpec,
        alpha: float,
        local: dict[int, list[EvalScored]],
        service: dict[int, list[EvalScored]],
        once: Sequence[RowMarks] = (),
    ) -> None:
        self._gate, self._alpha, self._local, self._service, self._once = spec.gate, alpha, local, service, once
        self.ranges = ranges_of([s for shards in local.values() for s in shards])
        self.criteria = criteria_of(spec, self.ranges) if local else []
        self.vetoes = vetoes_of(spec, self.ranges) if local else []
        self._floors = SliceFloors(spec.gate, self.ranges)
        self._ways_to_fail = len(self.criteria) + len(self._floors.columns)
        self.seen: list[RowMarks] = []
        self._failures: list[FailingRow] = []
        self._sure_after = 0
        self._missed = ""

    @property
    def trusted(self) -> bool:
        """Whether few enough prompts went unmarked."""
        return all(c.trusted for c in self.criteria) and all(veto.trusted for veto in self.vetoes)

    def outcome(self, of: int, failures_wanted: int, worth: Callable[[int], bool] | None = None) -> Outcome:
        """Take shard after shard until it is certain; `worth` says after each whether to go on."""
        alpha, criteria = self._alpha, self.criteria
        paired = any(c.paired for c in criteria)
        for shard in range(of):
            if shard not in self._local or (paired and shard not in self._service):
                return Outcome("waiting", self.seen, more=self._more(failures_wanted))
            self._take(shard, paired)
            violated = [veto for veto in self.vetoes if veto.violations]
            above = all(c.above.sure(alpha) for c in criteria) and self.trusted and not violated
            if not self._sure_after and above and not self._held_back(last=shard == of - 1):
                self._sure_after = len(self.seen)
                return self._told("passed", told(self.vetoes))
            # Failing on any criterion is as many chances to be wrong as there are criteria: they share the error.
            own = alpha / self._ways_to_fail
            missed = self._floors.missed(own)
            if not self._sure_after and (violated or missed or any(c.below.sure(own) for c in criteria)):
                self._sure_after = len(self.seen)
                self._missed = f"{missed} is below its floor" if missed else ""
            if self._sure_after and len(self._failures) >= failures_wanted:
                return self._told("failed", self._why_failed())
            if worth is not None and not worth(shard):
                break
        if self._sure_after:
            return self._told("failed", self._why_failed())
        if not self.trusted:
            return self._told("undecided", "too many answers went unmarked to pass")
        if self._floors.short and all(c.above.sure(alpha) for c in criteria):
            return self._told("undecided", f"below the floor, though not for sure: {', '.join(self._floors.short)}")
        return self._told("undecided", "the test set is too small to tell: the interval holds the gate")

    def _held_back(self, *, last: bool) -> Sequence[str]:
        """Parts that do not let the round pass as yet; one with few rows is asked nothing once no more can come.

        ValueError where a floor decides and no row is of any part: it would pass anything.
        """
        if self._once:
            # Every row has its first marks, and a part that no repeat has come to yet must keep its floor too.
            every = SliceFloors(self._gate, self.ranges)
            for row in [*self.seen, *self._once[len(self.seen) :]]:
                every.take(row)
            return every.short
        if last and self._floors.unseen:
            columns = ", ".join(self._floors.unseen)
            raise ValueError(f"slices.{columns} decides, and no marked test row has a value there")
        return self._floors.short if last else self._floors.open

    def _take(self, shard: int, paired: bool) -> None:
        bars = {row.row: row for row in rows_of({shard: self._service[shard]})} if paired else {}
        for row in rows_of({shard: self._local[shard]}):
            self.seen.append(row)
            self._floors.take(row)
            failing = _take_row(row, bars.get(row.row), self.criteria, self.vetoes, self.ranges)
            if failing is not None:
                self._failures.append(failing)

    def _why_failed(self) -> str:
        return "; ".join(part for part in (self._missed, told(v for v in self.vetoes if v.violations)) if part)

    def _more(self, failures_wanted: int) -> float:
        if not self._sure_after:
            return _more_needed(self.criteria, self._alpha, self._ways_to_fail)
        return (failures_wanted - len(self._failures)) * len(self.seen) / max(1, len(self._failures))

    def _told(self, verdict: Literal["passed", "failed", "undecided"], note: str = "") -> Outcome:
        worst = sorted(self._failures, key=lambda f: (f.mark, f.row))[:FAILURES_IN_EVENT]
        return Outcome(verdict, self.seen, self.ranges, self._alpha, worst, self._sure_after, note=note)


def _more_needed(criteria: Sequence[Criterion], alpha: float, ways_to_fail: int) -> float:
    """About how many more prompts a verdict takes: to pass on the slowest criterion, or to fail on the fastest."""
    if not criteria:
        return math.inf
    to_pass = max(c.above.more_needed(alpha) for c in criteria)
    to_fail = min(c.below.more_needed(alpha / ways_to_fail) for c in criteria)
    return min(to_pass, to_fail)


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
