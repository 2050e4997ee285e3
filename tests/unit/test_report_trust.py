"""What the report says of its own marks: resolution, agreement, noise, effort, holdout beside test."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.verdict import PROMPTS, Cell, Spread, measure
from llamaduo.event_parts import Interval, MetricRange
from llamaduo.events import EvalFailed, EvalScored
from llamaduo.migrations.agreement import krippendorff_alpha, noise_of
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_trust import trust_of
from llamaduo.migrations.resolution import alpha_of_round, prompts_for, smallest_gap, spread_of
from tests.simulated import START, learner, simulate
from tests.unit.synthetic_log import at, complete_log

# Four observers, twelve units; from K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
OBSERVERS: list[list[int | None]] = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_alpha_agrees_with_the_published_example() -> None:
    units = [[float(v) for v in unit if v is not None] for unit in zip(*OBSERVERS, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_full_agreement_is_one_and_equal_marks_say_nothing(values: list[float]) -> None:
    alpha = krippendorff_alpha([value, value] for value in values)
    assert alpha is None or alpha == pytest.approx(1)
    assert krippendorff_alpha([0.5, 0.5] for _ in values) is None
    assert krippendorff_alpha([value] for value in values) is None


def test_chance_agreement_is_near_zero_and_opposites_are_below() -> None:
    chance = random.Random(2)
    alpha = krippendorff_alpha([chance.random(), chance.random()] for _ in range(4_000))
    assert alpha == pytest.approx(0, abs=0.05)
    opposite = krippendorff_alpha([value, 1 - value] for value in (0.0, 0.2, 0.8, 1.0))
    assert opposite is not None and opposite < -0.5


def test_noise_is_the_spread_of_one_answers_marks_and_not_of_different_answers() -> None:
    chance = random.Random(6)
    groups = [[level + chance.gauss(0, 5) for _ in range(2)] for level in range(0, 1_000, 2)]
    noise = noise_of(groups)
    assert noise is not None and noise[0] == pytest.approx(5, rel=0.1) and noise[1] == 500
    assert noise_of([[1.0], [2.0]]) is None


def test_more_prompts_tell_finer_differences() -> None:
    alpha = 0.03
    assert smallest_gap(0.4, 16, alpha) > 0.3
    assert 0.1 < smallest_gap(0.4, 200, alpha) < 0.15
    gap = smallest_gap(0.3, 500, alpha)
    assert prompts_for(0.3, gap, alpha) in (500, 501)
    assert prompts_for(0.3, 0.0, alpha) is None
    assert smallest_gap(0.4, 200, alpha / 10) > smallest_gap(0.4, 200, alpha)
    assert spread_of([1.0] * 10) > 0.2
    with pytest.raises(ValueError, match="without prompts"):
        smallest_gap(0.4, 0, alpha)


def trusted(share: float, **spec: Any) -> Any:
    return trust_of(fold(simulate(learner(share), **spec)))


def test_the_rounds_resolution_is_told_on_the_metrics_own_scale() -> None:
    (part,) = trusted(0.66, budgets={"rounds": 1}).resolution
    assert (part.name, part.prompts) == ("exact-match.exact", 200)
    assert 0.1 < part.smallest_gap < 0.2 < 0.4 < part.spread < 0.5
    assert 1_000 < part.prompts_for_5_points < 2_500 and part.prompts_to_decide > 200


def test_parity_has_a_resolution_of_its_own() -> None:
    (part,) = trusted(0.97, gate={"parity": {"margin": 15}}).resolution
    assert part.name == "parity of exact-match.exact"
    assert part.smallest_gap < 0.1


def test_marking_is_held_against_the_papers_fixed_number() -> None:
    effort = trusted(0.95).effort
    assert effort.fixed == 200 * 40 and effort.repeats == 0
    assert 0 < effort.marked < 0.025 * effort.fixed


def test_evaluators_are_compared_answer_by_answer() -> None:
    (part,) = trusted(0.9, evaluators=["exact-match", "length"]).agreement
    assert (part.one, part.other, part.alpha) == ("exact-match.exact", "length.exact", 1)


def test_noise_shows_once_an_answer_was_marked_twice() -> None:
    log = complete_log()
    assert trust_of(fold(log)).noise == []
    again = [
        event.model_copy(update={"repeat": 1, "marks": [m.model_copy(update={"value": 76.0}) for m in event.marks]})
        for event in log
        if isinstance(event, EvalScored) and event.evaluator == "llm-judge"
    ]
    (noise,) = trust_of(fold([*log, *again])).noise
    assert (noise.evaluator, noise.metric) == ("llm-judge", "similarity")
    assert noise.sd == pytest.approx(8**0.5, abs=1e-3)


def test_the_holdout_stands_beside_the_test_marks() -> None:
    (part,) = trust_of(fold(complete_log())).holdout
    assert (part.test, part.holdout) == (1, 0.875)
    assert part.low < part.test - part.holdout < part.high


def test_an_undecided_round_says_how_many_prompts_would_decide() -> None:
    undecided = build_report(fold(simulate(learner(0.68), budgets={"rounds": 1})), START)
    (warning,) = [w for w in undecided.warnings if "would decide it" in w]
    assert "200 prompts tell a distance of" in warning and "about 2078 prompts" in warning


@pytest.mark.parametrize(("spread", "deviation"), [("0.22", 0.22), ("binary", 0.4)])
def test_the_smallest_gap_is_told_in_most_simulated_rounds(spread: Spread, deviation: float) -> None:
    gap = smallest_gap(deviation, PROMPTS, alpha_of_round(0.95, 0))
    told = measure(Cell("absolute", spread, round(100 * gap)), 60)
    assert 0.75 <= told["round0_passed"] <= 1
    finer = measure(Cell("absolute", spread, round(50 * gap)), 60)
    assert finer["round0_passed"] < 0.7


def test_a_model_no_better_than_copying_the_nearest_row_is_a_warning() -> None:
    def warned(share: float) -> bool:
        report = build_report(fold(simulate(learner(share), budgets={"rounds": 1})), START)
        assert report.nearest_row["exact-match"]["exact"].n == 200
        return any("nearest train row" in warning for warning in report.warnings)

    assert warned(0.15)
    assert not warned(0.6)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_model_as_good_as_copying_the_nearest_row_is_a_warning(higher_is_better: bool) -> None:
    scale = MetricRange(higher_is_better=higher_is_better)
    log = [
        event.model_copy(
            update={
                "metrics": {"exact": scale},
                "marks": [mark.model_copy(update={"value": 0.5}) for mark in event.marks],
            }
        )
        if isinstance(event, EvalScored)
        else event
        for event in simulate(learner(0.5), budgets={"rounds": 1})
        if not isinstance(event, EvalFailed)
    ]
    half = {"exact-match": {"exact": Interval(mean=0.5, low=0.4, high=0.6, n=200)}}
    decided = EvalFailed(migration="m-1", round=0, verdict="undecided", marks=half, gate={}, rows=200)
    warnings = build_report(fold([*log, decided]), START).warnings
    assert any("nearest train row" in warning for warning in warnings)


def test_marks_far_above_the_holdouts_are_a_warning() -> None:
    log = complete_log()
    assert not any("aimed at test failures" in w for w in build_report(fold(log), at(500)).warnings)
    worse = [
        event.model_copy(update={"marks": [m.model_copy(update={"value": 0.0}) for m in event.marks]})
        if isinstance(event, EvalScored) and event.split == "holdout" and event.evaluator == "exact-match"
        else event
        for event in log
    ]
    assert any("trust the holdout" in w for w in build_report(fold(worse), at(500)).warnings)
