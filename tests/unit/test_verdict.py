"""The verdict: waves, decisions with a promised error, one look at the holdout, and one end for every migration."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.events import (
    AnyEvent,
    BudgetRefused,
    CancelRequested,
    EvalFailed,
    EvalPassed,
    MigrationCancelled,
    MigrationCompleted,
    MigrationStopped,
    ResponsesRequested,
    WorkFailed,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.resolution import alpha_of_round
from services.verdict.deciding import due
from services.verdict.statistics import Wealth, confidence_sequence, refuted
from tests.simulated import START, dataset, generated, learner, requested, row_names, scored, simulate, trained


def last(log: list[AnyEvent]) -> AnyEvent:
    return log[-1]


def test_a_failed_round_is_followed_by_another_that_passes() -> None:
    log = simulate(learner(0.4, 0.9))
    ended = last(log)
    assert isinstance(ended, MigrationCompleted) and ended.round == 1
    passed = next(e for e in log if isinstance(e, EvalPassed))
    interval = passed.marks["exact-match"]["exact"]
    assert interval.low > 0.7 and interval.low <= interval.mean <= interval.high
    assert 0.8 < ended.holdout["exact-match"]["exact"].mean <= 1


@pytest.mark.parametrize("share", [0.8, 0.84, 0.88, 0.95])
def test_a_round_that_passed_has_its_interval_above_the_gate(share: float) -> None:
    for event in simulate(learner(share), test=2_000, budgets={"rounds": 1}):
        if isinstance(event, EvalPassed):
            assert event.marks["exact-match"]["exact"].low >= 0.7 - 1e-3
        elif isinstance(event, EvalFailed):
            assert event.verdict != "failed"


def test_a_sure_fail_names_enough_failing_rows_and_then_asks_no_more() -> None:
    log = simulate(learner(0.2, 0.95), marking={"failures_wanted": 20})
    failed = next(e for e in log if isinstance(e, EvalFailed))
    assert failed.verdict == "failed" and 20 <= len(failed.failures) <= 45
    assert failed.sure_after and failed.sure_after <= failed.rows
    assert failed.failures[0].reasons == ["fields differ"]
    asked = [e for e in log if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]
    assert len(asked) < 8


def _asked_of_round_0(view: MigrationView) -> list[int]:
    return [e.shard for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]


@pytest.mark.parametrize(
    ("share", "more"),
    [
        pytest.param(0.7, [2, 3, 4], id="at the gate: two waves ahead, nothing points to an end"),
        pytest.param(1.0, [], id="all right: what is asked for already will do"),
    ],
)
def test_asking_looks_as_far_ahead_as_a_verdict_seems_to_take(share: float, more: list[int]) -> None:
    view = fold([requested(), dataset(0), trained(0)])
    asked = [e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]
    assert [e.shard for e in asked] == [0, 1]
    for event in asked:
        view.add(event)
    assert _asked_of_round_0(view) == []
    answer = generated(asked[0])
    view.add(answer)
    view.add(scored(answer, row_names(asked[0], 25, 200), share))
    assert _asked_of_round_0(view) == more


@given(st.integers())
@settings(max_examples=30, deadline=None)
def test_the_decision_does_not_depend_on_the_order_in_which_shards_come(seed: int) -> None:
    log = simulate(learner(0.4, 0.9))
    decided = [e for e in log if isinstance(e, EvalFailed | EvalPassed)]
    before = [e for e in log if not isinstance(e, EvalFailed | EvalPassed | MigrationCompleted)]
    shuffled = before[1:]
    random.Random(seed).shuffle(shuffled)
    view = fold([before[0], *shuffled])
    again = {e.round: e for e in due(view, START) if isinstance(e, EvalFailed | EvalPassed)}
    for event in decided:
        assert again[event.round].model_dump(exclude={"at"}) == event.model_dump(exclude={"at"})


def test_what_was_said_is_not_said_again() -> None:
    log = simulate(learner(0.9))
    view = fold(log[:-1])
    assert [e.type for e in due(view, START)] == ["migration.completed"]
    assert due(fold(log), START) == []


@pytest.mark.parametrize(
    ("spec", "shares", "rule"),
    [
        ({"budgets": {"rounds": 2}}, (0.2, 0.3), "rounds"),
        ({"budgets": {"rounds": 9, "rounds_without_gain": 2}}, (0.4, 0.3, 0.2, 0.1), "no_gain"),
        ({"budgets": {"hours": 0.02, "rounds": 9}}, (0.2, 0.3, 0.4, 0.5), "hours"),
    ],
)
def test_named_stops(spec: dict[str, Any], shares: tuple[float, ...], rule: str) -> None:
    ended = last(simulate(learner(*shares), **spec))
    assert isinstance(ended, MigrationStopped) and ended.rule == rule and ended.reason


def test_a_round_near_its_gate_is_undecided_and_not_passed() -> None:
    log = simulate(learner(0.66), budgets={"rounds": 1})
    failed = next(e for e in log if isinstance(e, EvalFailed))
    assert failed.verdict == "undecided" and "too small" in failed.note
    assert isinstance(last(log), MigrationStopped)


def test_parity_passes_a_model_as_good_as_the_service_and_fails_a_worse_one() -> None:
    gate = {"parity": {"margin": 15}}
    assert isinstance(last(simulate(learner(0.97), gate=gate)), MigrationCompleted)
    ended = last(simulate(learner(0.5), gate=gate, budgets={"rounds": 1}))
    assert isinstance(ended, MigrationStopped) and ended.rule == "rounds"


def test_cancel_refused_budget_dead_letter_and_silence_each_end_a_migration() -> None:
    start: list[Any] = [requested(), dataset(0), trained(0)]
    cancelled = due(fold([*start, CancelRequested(migration="m-1", command="c-1234567", by="ann")]), START)
    assert [type(e) for e in cancelled] == [MigrationCancelled]
    refused = BudgetRefused(migration="m-1", what="money", limit=1, spent=1, job=dataset(0).id)
    assert _rule([*start, refused]) == "budget"
    dead = WorkFailed(
        migration="m-1", consumer="trainer", subject="dataset.ready", job=dataset(0).id, error="out of memory",
        attempts=3, dead_letter="abc",
    )  # fmt: skip
    assert _rule([*start, dead]) == "error"
    view = fold(start)
    asked = next(e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0")
    late = generated(asked).model_copy(update={"at": START})
    assert _rule([*start, asked, late], after=timedelta(hours=2)) == "silent_evaluator"
    # An evaluator of somebody else's, which the spec does not name, cannot say that this work is given up.
    strangers = dead.model_copy(update={"consumer": "evaluator-stranger", "subject": late.type, "job": late.id})
    assert _rule([*start, asked, late, strangers], after=timedelta(hours=2)) == "silent_evaluator"
    named = dead.model_copy(update={"consumer": "evaluator-exact-match", "job": late.id})
    assert _rule([*start, asked, late, named]) == "error"


def test_a_dead_letter_of_an_advisory_evaluator_or_a_baseline_or_of_garbage_stops_nobody() -> None:
    start: list[Any] = [
        requested(evaluators=["exact-match", {"name": "llm-judge", "role": "advisory"}]),
        dataset(0),
        trained(0),
    ]
    view = fold(start)
    base = next(e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "base")
    for job, consumer in ((generated(base).id, "evaluator-llm-judge"), (base.id, "inference"), ("", "trainer")):
        dead = WorkFailed(
            migration="m-1", consumer=consumer, subject="x", job=job, error="e", attempts=3, dead_letter=consumer
        )
        assert _rule([*start, base, generated(base), dead]) is None


def test_a_gate_on_a_metric_nobody_gives_is_a_named_stop() -> None:
    ended = last(simulate(learner(0.9), gate={"absolute": {"exact-match.precision": 0.5}}))
    assert isinstance(ended, MigrationStopped) and ended.rule == "error" and "exact-match.exact" in ended.reason


def _rule(events: Sequence[Any], after: timedelta = timedelta(0)) -> str | None:
    view = MigrationView("m-1")
    for event in events:
        view.add(event)
    stops = [e for e in due(view, START + after) if isinstance(e, MigrationStopped)]
    return stops[0].rule if stops else None


def test_the_promised_error_rate_holds_though_it_looks_after_every_prompt() -> None:
    """1,000 binary test sets with the mean exactly at the gate: at most 5 % (plus sampling) are refuted."""
    chance = random.Random(7)
    wrong = sum(
        refuted([float(chance.random() < 0.7) for _ in range(200)], 0.7, 0.05, above=True) for _ in range(1_000)
    )
    assert wrong <= 70


def test_a_clear_case_is_decided_with_few_prompts() -> None:
    chance = random.Random(3)
    values = [float(chance.random() < 0.95) for _ in range(60)]
    assert refuted(values, 0.7, 0.05, above=True)
    assert not refuted(values, 0.7, 0.05, above=False)


def test_the_forecast_shrinks_as_the_evidence_grows_and_is_infinite_without_any() -> None:
    above, below = Wealth(0.7, above=True), Wealth(0.7, above=False)
    forecasts = []
    for _ in range(30):
        above.take(0.95)
        below.take(0.95)
        forecasts.append(above.more_needed(0.05))
    assert forecasts[3] > forecasts[6] > 0 and forecasts[-1] == 0 and above.sure(0.05)
    assert below.more_needed(0.05) == float("inf")


def test_very_long_and_very_clear_series_stay_finite() -> None:
    always = Wealth(1e-9, above=True)
    for _ in range(3_000):
        always.take(1.0)
    assert always.sure(1e-12)
    never = Wealth(0.7, above=True)
    for _ in range(60_000):
        never.take(0.0)
    assert not never.sure(0.5) and never.more_needed(0.05) == float("inf")


@given(st.lists(st.floats(0, 1), max_size=80))
@settings(max_examples=40, deadline=None)
def test_intervals_hold_the_mean_and_stay_in_range(values: list[float]) -> None:
    low, high = confidence_sequence(values, 0.05)
    assert 0 <= low <= high <= 1
    if values:
        assert low - 1e-9 <= sum(values) / len(values) <= high + 1e-9


def test_the_error_spent_over_rounds_sums_to_what_was_promised() -> None:
    assert sum(alpha_of_round(0.95, n) for n in range(100_000)) == pytest.approx(0.05, rel=1e-3)
