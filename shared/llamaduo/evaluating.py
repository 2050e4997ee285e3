"""Run an evaluator as a subscriber: one durable, its own process, in this repository or in anybody's.

from llamaduo.evaluators import Score, evaluator
from llamaduo.evaluating import run_evaluator
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llamaduo.artifacts import read_bytes
from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.bus.topology import durable_for_evaluator
from llamaduo.datasets import ShardRow, load_shard
from llamaduo.errors import PermanentError
from llamaduo.evaluators import FREE, Evaluator, Score, Scored, Task
from llamaduo.event_parts import LabelCount, RowMark, WorkSpan
from llamaduo.events import EvalScored, Event, MarksRequested, ResponsesGenerated
from llamaduo.label_spelling import LONGEST_LABEL
from llamaduo.settings import ServiceSettings
from llamaduo.telemetry import SHARDS_MARKED, note_marks

LONGEST_VALUE = 80
LONGEST_REASON = 400
MARKS_BYTES = 650_000
"""For the marks and slices of a shard: a message of the bus has 1 MiB, and calls and work spans are in it, too."""
LABELS_BYTES = 80_000
"""For the labels of a shard beside its marks: some hundreds of different pairs."""


def marks_of(evaluator: Evaluator, rows: Sequence[ShardRow], scores: Sequence[Score]) -> list[RowMark]:
    """Scores as marks of an event; a row that a metric left out counts as abstained.

    PermanentError where a score is of no such row or metric, or out of range.
    """
    known = {row.row for row in rows}
    marks = []
    for score in scores:
        if score.row not in known:
            raise PermanentError(f"evaluator {evaluator.name} scored row {score.row!r}, which it was not given")
        limits = evaluator.metrics.get(score.metric)
        if limits is None:
            raise PermanentError(f"evaluator {evaluator.name} has not declared metric {score.metric!r}")
        if score.value is not None and not limits.low <= score.value <= limits.high:
            raise PermanentError(
                f"evaluator {evaluator.name} gave {score.metric} {score.value:g}, outside "
                f"{limits.low:g}..{limits.high:g}"
            )
        marks.append(
            RowMark(
                row=score.row,
                sample=score.sample,
                metric=score.metric,
                value=score.value,
                reason=score.reason[:LONGEST_REASON],
            )
        )
    marked = {(mark.row, mark.metric) for mark in marks}
    return marks + [
        RowMark(row=row.row, metric=metric, value=None, reason="left out by the evaluator")
        for row in rows
        for metric in evaluator.metrics
        if (row.row, metric) not in marked
    ]


def slices_of(rows: Sequence[ShardRow], columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """column -> row -> value of that `meta` column as text; rows that do not have it are left out."""
    return {
        column: {row.row: str(row.meta[column])[:LONGEST_VALUE] for row in rows if row.meta.get(column) is not None}
        for column in columns
    }


def fitting(marks: Sequence[RowMark], room: int) -> list[RowMark]:
    """The marks with their reasons cut, all to one length, as far as the room, in bytes, asks for it."""
    length, fitted = LONGEST_REASON, list(marks)
    while length and sum(map(_weight, fitted)) > room:
        length = length * 3 // 4
        fitted = [mark.model_copy(update={"reason": mark.reason[:length]}) for mark in marks]
    return fitted


def room_for_marks(evaluator: Evaluator, rows: Sequence[ShardRow], slices: Mapping[str, Mapping[str, str]]) -> int:
    """Bytes that the marks of a shard may have beside its slices.

    PermanentError where not even the bare marks fit in: asked before anything is paid.
    """
    room = MARKS_BYTES - _in_a_record(json.dumps(slices, ensure_ascii=False))
    bare = sum(
        _weight(RowMark(row=row.row, sample=sample, metric=metric, value=100 / 3))
        for row in rows
        for sample in range(max(1, len(row.answers)))
        for metric in evaluator.metrics
    )
    if bare > room:
        raise PermanentError(
            f"{len(evaluator.metrics)} metrics of {evaluator.name} on {len(rows)} rows are too many marks for one "
            "event: lower marking.shard_rows"
        )
    return room


def label_counts(scores: Sequence[Score]) -> list[LabelCount]:
    """Which labels were given for which, most frequent first; the rarest are left out where there is no room."""
    # An answer counts once, whatever the number of metrics.
    pairs = {(score.row, score.sample): score.labels for score in scores if score.labels is not None}
    counts = Counter((expected[:LONGEST_LABEL], given[:LONGEST_LABEL]) for expected, given in pairs.values())
    kept, room = [], LABELS_BYTES
    for (expected, given), answers in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        one = LabelCount(expected=expected, given=given, answers=answers)
        room -= _in_a_record(one.model_dump_json()) + 1
        if room < 0:
            break
        kept.append(one)
    return kept


def _weight(mark: RowMark) -> int:
    return _in_a_record(mark.model_dump_json()) + 1


def _in_a_record(text: str) -> int:
    """Bytes of a piece of JSON in a job's record, where an event is text within JSON: more than on its own."""
    return len(text.encode()) + text.count('"') + text.count("\\")


def marking(evaluator: Evaluator) -> Callable[[Any, Work], Awaitable[list[Event]]]:
    """The handler that marks one shard with this evaluator."""

    async def mark(event: ResponsesGenerated | MarksRequested, work: Work) -> list[Event]:
        if isinstance(event, MarksRequested) and event.evaluator != evaluator.name:
            return []
        view = await work.view(event.migration)
        spec = view.spec
        if spec is None or evaluator.name not in [choice.name for choice in spec.evaluators]:
            return []
        repeat = event.repeat if isinstance(event, MarksRequested) else 0
        scored = EvalScored(
            **event.place(),
            evaluator=evaluator.name,
            version=evaluator.version,
            repeat=repeat,
            metrics=evaluator.metrics,
            noisy=evaluator.noisy,
        )
        skipped = isinstance(event, ResponsesGenerated) and (event.skipped or event.responses is None)
        # What copying an answer would give is worth knowing where it costs nothing.
        skipped = skipped or (event.candidate.kind == "nearest" and evaluator.cost_per_row != FREE)
        if skipped or event.responses is None or not view.undecided(event.candidate, event.split):
            SHARDS_MARKED.labels(evaluator.name, "skipped").inc()
            return [scored.model_copy(update={"skipped": True})]
        rows = load_shard(await read_bytes(await work.bus.artifacts(), event.responses))
        task = Task(
            migration=event.migration,
            spec=spec,
            candidate=event.candidate.key,
            split=event.split,
            shard=event.shard,
            repeat=repeat,
            job=work.job,
            options=spec.options_of(evaluator.name),
        )
        slices = slices_of(rows, spec.gate.slices)
        room = room_for_marks(evaluator, rows, slices)
        began = datetime.now(UTC)
        result = await evaluator.score(rows, task)
        if not isinstance(result, Scored):
            result = Scored(scores=result)
        span = WorkSpan(kind="marking", began=began, ended=datetime.now(UTC))
        marks = fitting(marks_of(evaluator, rows, result.scores), room)
        note_marks(evaluator.name, ((mark.metric, mark.value) for mark in marks))
        return [
            scored.model_copy(
                update={
                    "marks": marks,
                    "slices": slices,
                    "labels": label_counts(result.scores),
                    "calls": result.calls,
                    "work": [*result.work, span],
                }
            )
        ]

    return mark


def evaluator_service(evaluator: Evaluator, settings: ServiceSettings) -> Service:
    """An evaluator wired to its own durable (made by `llamaduo evaluator add NAME` or bootstrap)."""
    durable = durable_for_evaluator(evaluator.name).name
    return Service(durable, settings, roles={durable: (marking(evaluator), evaluator.concurrency)})


def run_evaluator(evaluator: Evaluator, settings: ServiceSettings | None = None) -> None:
    """Run until SIGTERM."""
    evaluator_service(evaluator, settings or ServiceSettings()).run()
