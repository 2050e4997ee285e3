"""Marks are asked for again only where the judge's own noise keeps a round open, and at no more error."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from llamaduo.event_parts import Candidate, MetricRange, RowMark
from llamaduo.events import (
    AnyEvent,
    EvalFailed,
    EvalScored,
    MarksRequested,
    MigrationStopped,
    ReferencesRequested,
    ResponsesRequested,
    WorkFailed,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report_trust import trust_of
from llamaduo.migrations.resolution import alpha_of_round, smallest_gap
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.deciding import due
from services.verdict.judging import Outcome, judge_round
from tests.simulated import SPEC, START, dataset, generated, requested, row_names, trained

Draw = Callable[[str, int], float]
"""(row, repeat) -> mark on [0, 1]"""
ADAPTER = Candidate(kind="adapter", round=0)


def coin(seed: int, share: float) -> Draw:
    """A judge that is nothing but noise: every mark of every answer is drawn anew."""
    return lambda row, repeat: float(random.Random(f"{seed} {row} {repeat}").random() < share)


def settled(seed: int, share: float) -> Draw:
    """A judge without noise: prompts differ, its marks for one answer do not."""
    return lambda row, _repeat: float(random.Random(f"{seed} {row}").random() < share)


def spec_with(repeats: int) -> MigrationSpec:
    return MigrationSpec.model_validate({**SPEC, "marking": {"repeats": repeats, "failures_wanted": 0}})


def marks(draw: Draw, shard: int, repeat: int, noisy: bool = True) -> EvalScored:
    rows = [f"{shard}-{i}" for i in range(25)]
    return EvalScored(
        migration="m-1", candidate=ADAPTER, split="test", shard=shard, of=8, evaluator="exact-match", version="1",
        repeat=repeat, noisy=noisy, metrics={"exact": MetricRange()},
        marks=[RowMark(row=row, metric="exact", value=draw(row, repeat)) for row in rows],
    )  # fmt: skip


def play(draw: Draw, repeats: int, noisy: bool = True) -> tuple[Outcome, int]:
    """The verdict on one round, and how many shards were marked again."""
    local = {n: [marks(draw, n, 0, noisy)] for n in range(8)}
    again = 0
    while (outcome := judge_round(spec_with(repeats), 0, 8, local, {})).verdict == "waiting":
        assert outcome.noisy == ["exact-match"] and 1 <= outcome.repeat <= repeats
        shard = next(n for n in range(8) if len(local[n]) == outcome.repeat)
        local[shard].append(marks(draw, shard, outcome.repeat))
        again += 1
    return outcome, again


def test_where_all_spread_is_noise_repeats_decide_what_one_mark_a_prompt_cannot() -> None:
    seeds = range(30)
    without = sum(play(coin(seed, 0.79), 0)[0].verdict == "passed" for seed in seeds)
    outcomes = [play(coin(seed, 0.79), 4) for seed in seeds]
    assert sum(outcome.verdict == "passed" for outcome, _ in outcomes) >= without + 5
    helped = next(outcome for outcome, again in outcomes if outcome.verdict == "passed" and again)
    assert "marked again" in helped.note and helped.rows == 200


def test_without_noise_one_shard_is_marked_again_and_then_no_more() -> None:
    outcomes = [play(settled(seed, 0.76), 4) for seed in range(30)]
    undecided = [again for outcome, again in outcomes if outcome.verdict == "undecided"]
    assert len(undecided) > 5 and set(undecided) <= {0, 1} and 1 in undecided


def test_evaluators_that_are_not_noisy_are_never_asked_again() -> None:
    for seed in range(10):
        draw = coin(seed, 0.76)
        outcome, again = play(draw, 4, noisy=False)
        assert again == 0 and outcome.alpha == play(draw, 0)[0].alpha


@pytest.mark.parametrize("draw", [coin, settled])
def test_looking_again_costs_no_more_error_than_was_promised(draw: Callable[[int, float], Draw]) -> None:
    verdicts = [play(draw(seed, 0.7), 2)[0].verdict for seed in range(250)]
    assert verdicts.count("passed") <= 0.05 * 250 and verdicts.count("failed") <= 0.05 * 250


def test_the_answer_does_not_depend_on_marks_beyond_those_it_needed() -> None:
    draw = coin(3, 0.79)
    every = {n: [marks(draw, n, repeat) for repeat in range(5)] for n in range(8)}
    outcome, _ = play(draw, 4)
    assert judge_round(spec_with(4), 0, 8, every, {}) == outcome


def test_the_verdict_asks_for_one_shard_again_and_counts_what_that_took() -> None:
    view = MigrationView("m-1")
    draw = settled(2, 0.76)
    log: list[Any] = [requested(marking={"repeats": 3}, budgets={"rounds": 1}), dataset(0), trained(0)]
    now = START
    while log:
        event: AnyEvent = log.pop(0)
        if not view.add(event):
            continue
        if isinstance(event, ResponsesRequested | ReferencesRequested):
            log.append(generated(event))
            log.append(_scored(log[-1], draw, 0))
        elif isinstance(event, MarksRequested):
            log.append(_scored(view.generated(event.candidate.key, event.split)[event.shard], draw, event.repeat))
        if not log:
            now += timedelta(seconds=1)
            log += due(view, now)
    (asked,) = view.of_type(MarksRequested)
    assert (asked.shard, asked.repeat, asked.evaluator) == (0, 1, "exact-match")
    decided = view.decision(0)
    assert isinstance(decided, EvalFailed) and decided.verdict == "undecided" and "marked again" in decided.note
    trust = trust_of(view)
    assert trust.effort.repeats == 25 and trust.effort.saved == 3 * 200 - 25
    assert trust.noise[0].sd == 0 and trust.noise[0].answers == 25
    (told,) = trust.resolution
    one_look = smallest_gap(told.spread, 200, alpha_of_round(0.95, 0) / 4)
    assert told.smallest_gap == pytest.approx(one_look, abs=1e-3)


@pytest.mark.parametrize("dies_at", [0, 1, 5])
def test_marks_asked_for_again_that_go_to_the_dead_letters_stop_nothing(dies_at: int) -> None:
    """What the first marks said stands: a round that they left undecided stays so."""
    view, draw = MigrationView("m-1"), coin(6, 0.74)
    log: list[Any] = [requested(marking={"repeats": 3}, budgets={"rounds": 1}), dataset(0), trained(0)]
    now = START
    while log:
        event: AnyEvent = log.pop(0)
        if not view.add(event):
            continue
        if isinstance(event, ResponsesRequested | ReferencesRequested):
            log.append(generated(event))
            log.append(_scored(log[-1], draw, 0))
        elif isinstance(event, MarksRequested) and event.shard >= dies_at:
            log.append(
                WorkFailed(
                    migration="m-1", consumer="evaluator-exact-match", subject=event.type, job=event.id, error="e",
                    attempts=5, dead_letter=f"d{event.shard}",
                )
            )  # fmt: skip
        elif isinstance(event, MarksRequested):
            log.append(_scored(view.generated(event.candidate.key, event.split)[event.shard], draw, event.repeat))
        if not log:
            now += timedelta(seconds=1)
            log += due(view, now)
    decided = view.decision(0)
    assert view.of_type(WorkFailed) and isinstance(decided, EvalFailed)
    assert decided.verdict == "undecided" and "marking again was given up" in decided.note
    assert isinstance(view.ended, MigrationStopped) and view.ended.rule == "rounds"


def test_an_evaluator_that_never_marks_again_is_a_named_stop() -> None:
    view = fold([requested(marking={"repeats": 1}), dataset(0), trained(0)])
    asked = [e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]
    answer = generated(asked[0]).model_copy(update={"at": START})
    first = _scored(answer, settled(1, 0.72), 0).model_copy(update={"at": START})
    assert answer.responses is not None
    again = MarksRequested(**answer.place(), evaluator="exact-match", repeat=1, responses=answer.responses, at=START)
    for event in (answer, first, again):
        view.add(event)
    stops = [e for e in due(view, START + timedelta(hours=2)) if e.type == "migration.stopped"]
    assert stops and "again" in stops[0].reason  # type: ignore[attr-defined]


def test_an_evaluator_that_works_through_a_queue_of_repeats_is_not_silent() -> None:
    view = fold([requested(marking={"repeats": 2}), dataset(0), trained(0)])
    asked = [e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]
    for one in asked[:2]:
        answer = generated(one).model_copy(update={"at": START})
        first = _scored(answer, settled(1, 0.72), 0).model_copy(update={"at": START})
        assert answer.responses is not None
        again = MarksRequested(
            **answer.place(), evaluator="exact-match", repeat=1, responses=answer.responses, at=START
        )
        for event in (answer, first, again):
            view.add(event)
    late = START + timedelta(minutes=56)
    view.add(_scored(generated(asked[0]), settled(1, 0.72), 1).model_copy(update={"at": late}))
    stops = [
        [e.type for e in due(view, START + timedelta(minutes=minutes)) if e.type == "migration.stopped"]
        for minutes in (61, 117)
    ]
    assert stops == [[], ["migration.stopped"]]


def _scored(answer: Any, draw: Draw, repeat: int) -> EvalScored:
    rows = row_names(answer, 25, 200 if answer.split == "test" else 50)
    return EvalScored(
        **answer.place(), evaluator="exact-match", version="1", repeat=repeat, noisy=True,
        metrics={"exact": MetricRange()},
        marks=[RowMark(row=row, metric="exact", value=draw(row, repeat)) for row in rows],
    )  # fmt: skip
