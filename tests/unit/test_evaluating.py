"""The marks of a shard fit into one message of the bus, whatever an evaluator says."""

from __future__ import annotations

import pytest

from llamaduo.bus.work import Record
from llamaduo.datasets import ShardRow
from llamaduo.errors import PermanentError
from llamaduo.evaluating import LONGEST_REASON, MARKS_BYTES, fitting, room_for_marks
from llamaduo.evaluators import Evaluator, Score
from llamaduo.event_parts import MetricRange, RowMark
from llamaduo.events import EvalScored, encode_event

MESSAGE = 1_048_576


def marks(count: int, reason: str) -> list[RowMark]:
    return [RowMark(row=f"{n:024x}", metric="similarity", value=n / 7, reason=reason) for n in range(count)]


def in_a_record(of: list[RowMark]) -> int:
    place = {"migration": "m-1", "candidate": {"kind": "base"}, "split": "test", "shard": 0, "of": 1}
    scored = EvalScored.model_validate(
        {**place, "evaluator": "e", "version": "1", "metrics": {"similarity": MetricRange(low=0, high=1000)}}
    ).model_copy(update={"marks": of})
    return len(Record(results=[encode_event(scored).decode()]).model_dump_json().encode())


@pytest.mark.parametrize("reason", ["x" * 400, "ä\U0001f600" * 200, '"\\' * 200, "\x01" * 400])
def test_reasons_are_cut_so_that_a_full_shard_fits(reason: str) -> None:
    many = marks(2_000, reason)
    assert in_a_record(many) > 0.9 * MESSAGE
    fitted = fitting(many, MARKS_BYTES)
    assert 0.3 * MESSAGE < in_a_record(fitted) < 0.8 * MESSAGE
    assert {len(mark.reason) for mark in fitted} != {0}
    assert [(mark.row, mark.value) for mark in fitted] == [(mark.row, mark.value) for mark in many]


def test_a_usual_shard_keeps_its_reasons() -> None:
    usual = marks(200, "y" * LONGEST_REASON)
    assert fitting(usual, MARKS_BYTES) == usual


def test_too_many_metrics_are_refused_before_they_are_paid_for() -> None:
    rows = [ShardRow(row=f"{n:024x}", messages=[], reference="", answers=["a"] * 4) for n in range(250)]

    async def score(*_: object) -> list[Score]:
        return []

    def evaluator(metrics: int) -> Evaluator:
        declared = {f"metric-{n}": MetricRange(low=0, high=100) for n in range(metrics)}
        return Evaluator(name="many", version="1", metrics=declared, score=score)

    assert room_for_marks(evaluator(2), rows, {}) > 0.99 * MARKS_BYTES
    sliced = {"language": {row.row: '"ä"' * 20 for row in rows}}
    assert room_for_marks(evaluator(2), rows, sliced) < 0.97 * MARKS_BYTES
    with pytest.raises(PermanentError, match="lower marking"):
        room_for_marks(evaluator(20), rows, {})
