"""An evaluator made of one pure function that marks one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamaduo.datasets import ShardRow
from llamaduo.evaluators import Score, ScoreTask, Task

Options = Mapping[str, Any]
"""What the spec sets for this evaluator."""
MarkOne = Callable[[ShardRow, str, Options], tuple[Mapping[str, float | None], str]]
"""(row, answer, options) to the value of each metric (None abstains) and one reason for all."""
LabelsOfOne = Callable[[ShardRow, str, Options], tuple[str, str] | None]
"""(row, answer, options) to the labels of the reference and of the answer."""


def each_answer(
    metrics: Sequence[str],
    mark_one: MarkOne,
    *,
    check: Callable[[Options], None],
    labels: LabelsOfOne = lambda *_: None,
) -> ScoreTask:
    """Marks every answer of every row with `mark_one`; a missing answer abstains on all metrics.

    `check` raises where the spec's options cannot be used, before any row is marked. The marking is done in a
    thread: a long answer must not hold up the heartbeat.
    """

    def mark_all(rows: Sequence[ShardRow], options: Options) -> list[Score]:
        scores: list[Score] = []
        for row in rows:
            for sample, answer in enumerate(row.answers):
                if answer is None:
                    values: Mapping[str, float | None] = dict.fromkeys(metrics)
                    reason, pair = "there is no answer to mark", None
                else:
                    values, reason = mark_one(row, answer, options)
                    pair = labels(row, answer, options)
                scores += [Score(row.row, metric, values[metric], sample, reason, pair) for metric in metrics]
        return scores

    async def score(rows: Sequence[ShardRow], task: Task) -> list[Score]:
        check(task.options)
        return await asyncio.to_thread(mark_all, rows, task.options)

    return score
