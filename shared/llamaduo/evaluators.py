"""What an evaluator is: a name, a version, its metrics and `async def score(rows) -> list[Score]`.

An evaluator knows no NATS. `llamaduo.evaluating` runs one as a subscriber; see docs/evaluators.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaduo.datasets import ShardRow
from llamaduo.event_parts import CallCounts, MetricRange, WorkSpan
from llamaduo.migrations.spec import MigrationSpec

FREE = "free"
"""What `cost_per_row` says of an evaluator that pays nobody: it marks baselines too that a paid one is spared."""


@dataclass(frozen=True)
class Score:
    """One mark for one answer: `value` None abstains, and `reason` then says why."""

    row: str
    metric: str
    value: float | None
    sample: int = 0
    reason: str = ""
    labels: tuple[str, str] | None = None
    """Where labels were compared, those of the reference and of the answer (empty: it has none), for the report."""


@dataclass(frozen=True)
class Scored:
    """Scores together with what they cost, for evaluators that call a service LLM."""

    scores: list[Score]
    calls: CallCounts = field(default_factory=CallCounts)
    work: list[WorkSpan] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What an evaluator may know of the work in hand beside the rows."""

    migration: str
    spec: MigrationSpec
    candidate: str
    split: str
    shard: int
    repeat: int
    job: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the spec sets for this evaluator."""


ScoreRows = Callable[[Sequence[ShardRow]], Awaitable[list[Score]]]
ScoreTask = Callable[[Sequence[ShardRow], Task], Awaitable["list[Score] | Scored"]]


@dataclass(frozen=True)
class Evaluator:
    """A named marker of answers. `version` is part of a mark's identity: raise it when marks would change.

    `noisy`: asked again about the same answer it may mark it differently, so repeats can tell something.
    """

    name: str
    version: str
    metrics: dict[str, MetricRange]
    score: ScoreTask
    cost_per_row: str = FREE
    concurrency: int = 1
    noisy: bool = False


def evaluator(
    name: str, *, version: str = "1", metrics: dict[str, Any] | None = None
) -> Callable[[ScoreRows], Evaluator]:
    """Decorator: make an `async def score(rows) -> list[Score]` an Evaluator.

    `metrics` maps a metric's name to (low, high) or a MetricRange; default: one metric, `score`, in [0, 1].
    """
    ranges = {
        metric: value if isinstance(value, MetricRange) else MetricRange(low=value[0], high=value[1])
        for metric, value in (metrics or {"score": (0.0, 1.0)}).items()
    }

    def wrap(score: ScoreRows) -> Evaluator:
        async def score_task(rows: Sequence[ShardRow], _task: Task) -> list[Score]:
            return await score(rows)

        return Evaluator(name=name, version=version, metrics=ranges, score=score_task)

    return wrap
