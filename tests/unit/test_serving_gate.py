"""`gate.serving`: measured once the marks pass, decided by counts, and never passed on too few requests."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from llamaduo.cli.watching import line_of, summary
from llamaduo.events import AnyEvent, EvalFailed, EvalPassed, MigrationCompleted, MigrationStopped, ServingRequested
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import report_html
from llamaduo.migrations.serving_gate import at_most, fewest_for_p95, judge_serving, percentile
from llamaduo.migrations.spec import Gate, MigrationSpec
from tests.simulated import SPEC, START, learner, simulate

SERVING = {"latency_p95_s": 1.0, "requests_per_second": 4.0, "concurrency": 8, "requests": 100}


def gate(**serving: Any) -> dict[str, Any]:
    return {"absolute": {"exact-match.exact": 0.7}, "serving": {**SERVING, **serving}}


def played(seconds: list[float], shares: tuple[float, ...] = (0.95,), **serving: Any) -> list[AnyEvent]:
    return simulate(learner(*shares), gate=gate(**serving), seconds=seconds)


def test_a_round_that_is_fast_enough_passes_and_says_what_the_box_carries() -> None:
    log = played([0.5] * 100)
    assert isinstance(log[-1], MigrationCompleted)
    (passed,) = [e for e in log if isinstance(e, EvalPassed)]
    assert "this box carries 16 requests/s: 100 test prompts" in passed.note and "8 in flight" in passed.note
    report = build_report(fold(log), START)
    assert report.serving is not None and report.serving.verdict == "passed"
    assert (report.serving.requests_per_second, report.serving.latency_p95_s) == (16.0, 0.5)
    assert report.serving.told in passed.note
    page = report_html(report)
    assert "This box carries 16 requests/s" in page and "95 of 100 requests within 1 s; 4 requests/s" in page


def test_watch_and_summary_say_it_in_a_line() -> None:
    log = played([0.5] * 100)
    lines = [line for event in log if event.type.startswith("serving.") and (line := line_of(event))]
    assert lines[0] == "round 0: the marks pass; measuring how fast it is served"
    assert lines[1].startswith("round 0: this box carries 16 requests/s")
    assert "as served (round 0): this box carries 16 requests/s" in summary(build_report(fold(log), START))
    (place,) = [n for n, event in enumerate(log) if isinstance(event, ServingRequested)]
    assert fold(log[: place + 1]).stage == "measuring" and fold(log[:place]).stage == "marking"


def test_it_is_asked_once_and_only_where_the_marks_pass() -> None:
    log = played([0.5] * 100, (0.2, 0.95))
    (asked,) = [e for e in log if isinstance(e, ServingRequested)]
    assert asked.round == 1 and asked.candidate.kind == "adapter" and asked.candidate.adapter is not None
    assert (asked.requests, asked.concurrency) == (100, 8)
    assert not [e for e in simulate(learner(0.95)) if isinstance(e, ServingRequested)]


@pytest.mark.parametrize(
    ("seconds", "verdict", "why"),
    [
        pytest.param([2.0] * 100, "failed", "100 of 100 were slower than the 1 s", id="slow"),
        pytest.param([0.9] * 95 + [1.1] * 5, "undecided", "too near to tell", id="near"),
        pytest.param([0.1] * 58, "undecided", "only 58 requests could be measured, 59 are needed", id="too few"),
        pytest.param([], "undecided", "only 0 requests could be measured", id="none"),
    ],
)
def test_what_is_not_surely_fast_enough_stops_by_name_and_buys_no_rows(
    seconds: list[float], verdict: str, why: str
) -> None:
    log = played(seconds)
    (failed,) = [e for e in log if isinstance(e, EvalFailed)]
    assert failed.verdict == verdict and why in failed.note
    ended = log[-1]
    assert isinstance(ended, MigrationStopped) and ended.rule == "serving" and why in ended.reason
    assert fold(log).rounds == [0]


def test_too_low_a_rate_fails_though_each_answer_is_fast() -> None:
    (failed,) = [e for e in played([0.9] * 100, requests_per_second=20.0) if isinstance(e, EvalFailed)]
    assert failed.verdict == "failed" and "this box carries 8.89 requests/s" in failed.note


def test_without_limits_it_is_measured_and_decides_nothing() -> None:
    log = simulate(learner(0.95), gate={"absolute": {"exact-match.exact": 0.7}, "serving": {}}, seconds=[30.0] * 3)
    assert isinstance(log[-1], MigrationCompleted)
    report = build_report(fold(log), START)
    assert report.serving is not None and "3 test prompts" in report.serving.told


def test_a_percentile_at_its_limit_is_passed_no_more_often_than_promised() -> None:
    """Exactly 5 % of all requests are slower: a pass would be wrong."""
    draw, spec = random.Random(7), Gate.model_validate(gate(requests_per_second=None))
    assert spec.serving is not None
    chance = {n: at_most(n, 100) for n in range(101)}
    assert all(one <= other for one, other in pairwise(chance.values())) and chance[100] == 1
    passed = failed = 0
    asked = next(e for e in played([0.5] * 100) if e.type == "serving.measured")
    for _ in range(4_000):
        slow = sum(draw.random() < 0.05 for _ in range(100))
        burst = asked.model_copy(update={"seconds": [2.0] * slow + [0.5] * (100 - slow)})
        verdict = judge_serving(spec, burst).verdict
        passed, failed = passed + (verdict == "passed"), failed + (verdict == "failed")
    assert 0 < passed <= 200 and 0 < failed <= 200


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("serving", "fewest"),
    [
        ({"latency_p95_s": 1.0, "requests": 58}, 59),
        ({"requests_per_second": 1.0, "concurrency": 32, "requests": 100}, 128),
        ({"requests": 10}, 32),
    ],
)
def test_a_spec_that_asks_too_few_requests_is_refused(serving: dict[str, Any], fewest: int) -> None:
    asked = {"gate": {"absolute": {"exact-match.exact": 0.7}, "serving": serving}}
    with pytest.raises(ValidationError, match="cannot tell that") as caught:
        MigrationSpec.model_validate({**SPEC, **asked})
    assert caught.value.errors()[0]["ctx"]["hint"] == f"at least {fewest}"
    serving["requests"] = fewest
    MigrationSpec.model_validate({**SPEC, **asked})


def test_fewest_requests_follow_from_the_confidence() -> None:
    assert [fewest_for_p95(c) for c in (0.9, 0.95, 0.99)] == [45, 59, 90]
    assert at_most(0, 59) <= 0.05 < at_most(0, 58)


def test_a_spec_without_it_has_the_id_that_it_always_had() -> None:
    assert "serving" not in MigrationSpec.model_validate(SPEC).model_dump(mode="json")["gate"]
