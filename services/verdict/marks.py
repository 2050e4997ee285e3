"""From marks in the log to one value a prompt: which shards are complete, and what each row got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llamaduo.event_parts import MarkedSplit, MetricRange
from llamaduo.events import EvalScored
from llamaduo.migrations.fold import MigrationView

MetricKey = tuple[str, str]
"""(evaluator, metric)"""


@dataclass(frozen=True)
class RowMarks:
    """One prompt's marks: mean over samples and repeats on the metric's own scale; None where all abstained."""

    row: str
    shard: int
    values: dict[MetricKey, float | None]
    reasons: list[str]
    slices: dict[str, str] = field(default_factory=dict)
    """Its value in each `meta` column that the gate has a floor for."""


def ranges_of(scored: Sequence[EvalScored]) -> dict[MetricKey, MetricRange]:
    """The declared ranges of all metrics seen."""
    return {(s.evaluator, metric): limits for s in scored for metric, limits in s.metrics.items()}


def shards_marked(
    view: MigrationView, candidate: str, split: MarkedSplit, evaluators: Sequence[str]
) -> dict[int, list[EvalScored]]:
    """Shards that every one of these evaluators has marked (skipped ones do not count), by number."""
    by_evaluator = {name: view.scored(candidate, split, name) for name in evaluators}
    if not by_evaluator:
        return {}
    common = set.intersection(*(set(shards) for shards in by_evaluator.values()))
    complete: dict[int, list[EvalScored]] = {}
    for shard in sorted(common):
        scored = [s for name in evaluators for s in by_evaluator[name][shard] if not s.skipped]
        if {s.evaluator for s in scored} == set(evaluators):
            complete[shard] = scored
    return complete


def prefix_length(shards: dict[int, list[EvalScored]]) -> int:
    """How many shards from number 0 on are there without a gap."""
    length = 0
    while length in shards:
        length += 1
    return length


def rows_of(shards: dict[int, list[EvalScored]]) -> list[RowMarks]:
    """Every prompt's marks, in shard order and within a shard in the order of its evaluators' first marks."""
    rows: list[RowMarks] = []
    for shard in sorted(shards):
        sums: dict[str, dict[MetricKey, list[float | None]]] = {}
        reasons: dict[str, list[str]] = {}
        parts: dict[str, dict[str, str]] = {}
        for scored in shards[shard]:
            for column, values in scored.slices.items():
                for row, value in values.items():
                    parts.setdefault(row, {})[column] = value
            for mark in scored.marks:
                cell = sums.setdefault(mark.row, {}).setdefault((scored.evaluator, mark.metric), [])
                cell.append(mark.value)
                if mark.reason and mark.reason not in reasons.setdefault(mark.row, []):
                    reasons[mark.row].append(mark.reason)
        for row, metrics in sums.items():
            means = {key: _mean(marks) for key, marks in metrics.items()}
            rows.append(RowMarks(row, shard, means, reasons.get(row, []), parts.get(row, {})))
    return rows


def _mean(marks: Sequence[float | None]) -> float | None:
    if len(marks) == 1:
        return marks[0]
    given = [mark for mark in marks if mark is not None]
    return sum(given) / len(given) if given else None
