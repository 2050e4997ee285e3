"""Every migration ends, and by the right rule: what stops one, what does not, and what waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from llamaduo.event_parts import MetricRange
from llamaduo.events import (
    AdapterPromoted,
    AnyEvent,
    BudgetRefused,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MigrationCompleted,
    MigrationStopped,
    PromoteRequested,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    WorkFailed,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.next_step import NextRound, Stop, after_failure
from services.verdict.deciding import due
from tests.simulated import START, dataset, generated, learner, requested, row_names, scored, simulate, trained


def ends(events: Sequence[Any], after: timedelta = timedelta(0)) -> list[Event]:
    return [e for e in due(fold(events), START + after) if isinstance(e, MigrationCompleted | MigrationStopped)]


def dead(job: Event, consumer: str = "inference") -> WorkFailed:
    return WorkFailed(
        migration="m-1", consumer=consumer, subject=job.type, job=job.id, error="e", attempts=3, dead_letter="d"
    )


def up_to_the_pass(**spec: Any) -> list[AnyEvent]:
    """A log that ends with `eval.passed` of round 0."""
    log = simulate(learner(0.95), **spec)
    return log[: next(i for i, e in enumerate(log) if isinstance(e, EvalPassed)) + 1]


def without_the_verdict(log: Sequence[AnyEvent]) -> list[AnyEvent]:
    return [e for e in log if not isinstance(e, EvalPassed | EvalFailed | AdapterPromoted | MigrationCompleted)]


def test_an_operators_command_that_cannot_be_carried_out_ends_nothing() -> None:
    typo = PromoteRequested(migration="m-1", command="c-12345678", round=7)
    log = [requested(), dataset(0), typo, dead(typo, "inference-promotion")]
    assert ends(log) == []
    assert [e.type for e in ends([*log[:2], dead(log[1], "trainer")])] == ["migration.stopped"]


def test_a_spec_this_version_cannot_read_ends_its_migration_and_no_other() -> None:
    request = requested().model_copy(update={"spec": {"from_a_later_version": True}})
    ended = due(fold([request, dataset(0), trained(0)]), START)
    assert [e.type for e in ended] == ["migration.stopped"]
    assert isinstance(ended[0], MigrationStopped) and ended[0].rule == "error"
    assert "cannot be read by this version" in ended[0].reason


@pytest.mark.parametrize(
    ("metrics", "value", "said"),
    [
        ({}, 1.0, "which no evaluator gives"),
        ({"exact": MetricRange(low=0, high=0)}, 0.0, "no scale"),
        ({"exact": MetricRange(low=0, high=1)}, 7.0, "not on its metric's scale"),
    ],
)
def test_marks_that_cannot_be_judged_are_a_named_stop_and_never_a_pass(
    metrics: dict[str, MetricRange], value: float, said: str
) -> None:
    start: list[Any] = [requested(), dataset(0), trained(0)]
    asked = _asked(start, "round-0")[0]
    answer = generated(asked)
    mark = scored(answer, row_names(asked, 25, 200), 1.0)
    marks = [one.model_copy(update={"value": value}) for one in mark.marks]
    ended = due(fold([*start, asked, answer, mark.model_copy(update={"metrics": metrics, "marks": marks})]), START)
    assert isinstance(ended[-1], MigrationStopped) and ended[-1].rule == "error" and said in ended[-1].reason
    assert not any(isinstance(e, EvalPassed | EvalFailed) for e in ended)


def test_a_gate_off_its_metrics_scale_is_a_named_stop() -> None:
    ended = simulate(learner(1.0), gate={"absolute": {"exact-match.exact": 70}})[-1]
    assert isinstance(ended, MigrationStopped) and ended.rule == "error" and "scale" in ended.reason


def test_a_dead_letter_of_an_advisory_evaluator_ends_nothing_and_a_required_ones_does() -> None:
    evaluators = ["exact-match", {"name": "llm-judge", "role": "advisory"}]
    start: list[Any] = [requested(evaluators=evaluators), dataset(0), trained(0)]
    asked = _asked(start, "round-0")[0]
    log = [*start, asked, generated(asked)]
    assert ends([*log, dead(log[-1], "evaluator-llm-judge")]) == []
    (stopped,) = ends([*log, dead(log[-1], "evaluator-exact-match")])
    assert isinstance(stopped, MigrationStopped) and stopped.rule == "error"


def test_a_shard_that_nobody_asked_for_is_not_waited_for_after_a_pass() -> None:
    log = up_to_the_pass(holdout=0)
    asked = next(e for e in log if isinstance(e, ResponsesRequested) and e.candidate.key == "base")
    passed = log[-1]
    assert isinstance(passed, EvalPassed)
    beyond = asked.model_copy(update={"shard": 70, "of": 90})
    assert [e.type for e in ends([*log, promotion(passed), beyond])] == ["migration.completed"]


def test_more_shards_than_can_be_asked_for_are_a_named_stop() -> None:
    (stopped,) = ends([requested(), dataset(0, test=10**15)])
    assert isinstance(stopped, MigrationStopped) and stopped.rule == "error" and "at most" in stopped.reason


@pytest.mark.parametrize("share", [0.2, 0.95])
def test_a_surplus_shard_that_dies_after_its_round_was_decided_stops_nobody(share: float) -> None:
    log = simulate(learner(share))
    cut = log[: next(i for i, e in enumerate(log) if isinstance(e, EvalPassed | EvalFailed)) + 1]
    surplus = [e for e in cut if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"][-1]
    assert ends([*cut, dead(surplus)]) == []


def test_a_pass_and_a_stop_are_never_said_together() -> None:
    log = without_the_verdict(up_to_the_pass())
    refused = BudgetRefused(migration="m-1", what="money", limit=1, spent=1, job=dataset(0).id)
    for events, after in ((log, timedelta(days=9)), ([*log, refused], timedelta(0))):
        said = due(fold(events), START + after)
        assert any(isinstance(e, EvalPassed) for e in said)
        assert not any(isinstance(e, MigrationStopped) for e in said)


def test_a_baseline_shard_that_was_given_up_is_not_called_silence_after_a_pass() -> None:
    log = up_to_the_pass()
    lost = next(e for e in log if isinstance(e, ResponsesGenerated) and e.candidate.key == "base")
    kept = [e for e in log if not (isinstance(e, EvalScored) and e.candidate.key == "base" and e.shard == lost.shard)]
    stops = ends([*kept, dead(lost, "evaluator-exact-match")], after=timedelta(hours=3))
    assert not any(isinstance(e, MigrationStopped) and e.rule == "silent_evaluator" for e in stops)


def test_an_evaluator_that_works_through_a_queue_is_not_silent() -> None:
    start: list[Any] = [requested(), dataset(0), trained(0)]
    asked = _asked(start, "round-0")
    answers = [generated(one).model_copy(update={"at": START}) for one in asked]
    mark = scored(answers[0], row_names(asked[0], 25, 200), 0.7)
    busy = [*start, *asked, *answers, mark.model_copy(update={"at": START + timedelta(minutes=56)})]
    assert ends(busy, after=timedelta(minutes=61)) == []
    assert [getattr(e, "rule", None) for e in ends(busy, after=timedelta(minutes=117))] == ["silent_evaluator"]


def test_after_a_pass_the_hours_end_the_wait_for_what_is_only_compared() -> None:
    log = up_to_the_pass(budgets={"hours": 2}, marking={"silent_after_s": 1e9})
    passed = log[-1]
    assert isinstance(passed, EvalPassed)
    (unserved,) = ends(log, after=timedelta(hours=3))
    assert isinstance(unserved, MigrationStopped) and "was not served" in unserved.reason
    assert ends([*log, promotion(passed)], after=timedelta(hours=1)) == []
    (completed,) = ends([*log, promotion(passed)], after=timedelta(hours=3))
    assert isinstance(completed, MigrationCompleted) and "not all marks" in completed.reason


def test_another_rounds_promotion_by_hand_does_not_stand_for_the_one_that_passed() -> None:
    log = simulate(learner(0.2, 0.95), holdout=0)
    cut = [e for e in log if not isinstance(e, AdapterPromoted | MigrationCompleted)]
    passed = next(e for e in cut if isinstance(e, EvalPassed))
    earlier = promotion(passed).model_copy(update={"round": 0, "command": "c-1234567"})
    assert ends([*cut, earlier]) == []
    assert [e.type for e in ends([*cut, earlier, promotion(passed)])] == ["migration.completed"]


def test_rounds_are_compared_by_the_gate_alone_and_in_the_direction_that_counts() -> None:
    """The gate's metric falls from round to round, which is better here; another one drifts down."""
    spec: dict[str, Any] = {"gate": {"absolute": {"exact-match.errors": 0.1}}, "budgets": {"rounds_without_gain": 1}}
    log: list[Any] = [requested(**spec)]
    for number, errors in enumerate((0.9, 0.6, 0.6)):
        log += [dataset(number), trained(number)]
        asked = _asked(log, f"round-{number}")[0]
        metrics = {
            "errors": MetricRange(low=0, high=1, higher_is_better=False),
            "style": MetricRange(low=0, high=100),
        }
        mark = scored(generated(asked), row_names(asked, 25, 200), 0.5)
        log.append(mark.model_copy(update={"metrics": metrics, "marks": []}))
        marks = {"exact-match": {"errors": _mean(errors), "style": _mean(90 - 30 * number)}}
        log.append(
            EvalFailed(migration="m-1", round=number, verdict="failed", marks=marks, gate={}, rows=25, at=START)
        )
    assert after_failure(_folded(log), 1) == NextRound(2)
    stop = after_failure(_folded(log), 2)
    assert isinstance(stop, Stop) and stop.rule == "no_gain"


def promotion(passed: EvalPassed) -> AdapterPromoted:
    assert passed.candidate.adapter is not None
    return AdapterPromoted(
        migration="m-1", round=passed.round, alias="triage", adapter=passed.candidate.adapter,
        name="m-1-r0", by="verdict", why="passed",
    )  # fmt: skip


def _mean(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean, "high": mean, "n": 25}


def _asked(log: Sequence[Any], candidate: str) -> list[Any]:
    """What the verdict asks of this candidate now."""
    asked = (ResponsesRequested, ReferencesRequested)
    return [e for e in due(fold(log), START) if isinstance(e, asked) and e.candidate.key == candidate]


def _folded(log: Sequence[Any]) -> MigrationView:
    return fold(log)
