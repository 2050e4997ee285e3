"""Several base models: the smallest that passes wins, a larger one is marked only once the smaller have failed."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.cli.submission import migration_id
from llamaduo.cli.watching import summary
from llamaduo.datasets import dataset_digest
from llamaduo.event_parts import Candidate
from llamaduo.events import (
    AnyEvent,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    Event,
    MigrationCompleted,
    MigrationStopped,
    ResponsesRequested,
    ServingRequested,
    TrainingRequested,
    WorkFailed,
)
from llamaduo.identity import content_digest, identity
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import report_html
from llamaduo.migrations.resolution import alpha_of_look
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.bases import standings, turn_of
from services.verdict.deciding import due
from tests.simulated import SPEC, START, Skill, dataset, learner, requested, simulate, trained

TWO: dict[str, Any] = {"base_model": "", "base_models": ["owner/a", "owner/b"]}
THREE: dict[str, Any] = {"base_model": "", "base_models": ["owner/a", "owner/b", "owner/c"]}


def skilled(*shares: float, gain: float = 0.0) -> Skill:
    """Share of right answers by base model, more by `gain` each round; nobody untrained is ever right."""

    def skill(candidate: str, number: int) -> float:
        if candidate == "service":
            return 0.98
        if not candidate.startswith("round-"):
            return 0.0
        _, _, base = candidate.partition("-base-")
        return shares[int(base or 0)] + gain * number

    return skill


def answered(log: list[AnyEvent]) -> list[str]:
    """Keys of the candidates that were asked for answers to the test split, each once, in the order of asking."""
    asked = [e.candidate.key for e in log if isinstance(e, ResponsesRequested) and e.split == "test"]
    return list(dict.fromkeys(asked))


def test_the_smaller_base_model_passes_and_the_larger_ones_marks_are_never_bought() -> None:
    log = simulate(skilled(0.95, 0.97), **TWO)
    passed = next(e for e in log if isinstance(e, EvalPassed))
    assert isinstance(log[-1], MigrationCompleted) and passed.candidate.key == "round-0" and passed.base == 0
    assert [one.verdict for one in passed.bases] == ["passed"] and passed.note.startswith("owner/a passed")
    assert [(e.round, e.base) for e in log if isinstance(e, TrainingRequested)] == [(0, 1)]
    assert answered(log) == ["base", "round-0"]


def test_where_the_smaller_one_fails_the_larger_one_wins_the_same_round() -> None:
    log = simulate(skilled(0.3, 0.95), **TWO)
    passed = next(e for e in log if isinstance(e, EvalPassed))
    assert isinstance(log[-1], MigrationCompleted) and log[-1].round == 0
    assert passed.candidate.key == "round-0-base-1" and passed.candidate.adapter is not None
    assert passed.base == 1 and passed.candidate.adapter.base_model == "base-1"
    assert [(one.base, one.verdict) for one in passed.bases] == [(0, "failed"), (1, "passed")]
    assert "owner/a failed" in passed.note and passed.marks["exact-match"]["exact"].mean > 0.9
    # Of those untrained the winner is compared with itself; and the smaller one got no more marks than its fail took.
    assert answered(log) == ["base", "round-0", "round-0-base-1", "base-1"]
    assert len([e for e in log if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0"]) <= 4


def test_where_all_fail_the_best_ones_failures_are_handed_on_and_all_are_trained_again() -> None:
    log = simulate(skilled(0.2, 0.5, 0.4, gain=0.45), marking={"failures_wanted": 40}, **THREE)
    failed = next(e for e in log if isinstance(e, EvalFailed))
    assert failed.base == 1 and failed.verdict == "failed" and len(failed.failures) >= 40
    assert [one.verdict for one in failed.bases] == ["failed"] * 3
    assert failed.bases[0].rows < failed.rows  # what only serves the next data was bought of the best alone
    assert failed.note.startswith("owner/b is the best of those that did not; owner/a failed; owner/c failed")
    assert [(e.round, e.base) for e in log if isinstance(e, TrainingRequested)] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    passed = next(e for e in log if isinstance(e, EvalPassed))
    assert (passed.round, passed.base) == (1, 1)


def test_a_larger_one_that_is_ready_first_waits_for_the_smaller_one() -> None:
    view = fold([requested(**TWO), dataset(0), trained(0, base=1)])
    assert not any(isinstance(e, ResponsesRequested) and e.candidate.kind == "adapter" for e in due(view, START))
    view.add(trained(0))
    asked = [e.candidate.key for e in due(view, START) if isinstance(e, ResponsesRequested)]
    assert "round-0" in asked and "round-0-base-1" not in asked


def test_each_that_passes_its_marks_is_measured_and_one_too_slow_has_failed() -> None:
    gate = {"absolute": {"exact-match.exact": 0.7}, "serving": {"latency_p95_s": 1.0}}
    log = simulate(skilled(0.95, 0.97), gate=gate, seconds=[30.0] * 200, **TWO)
    asked = [e for e in log if isinstance(e, ServingRequested)]
    assert [e.candidate.key for e in asked] == ["round-0", "round-0-base-1"] and asked[0].id != asked[1].id
    failed = next(e for e in log if isinstance(e, EvalFailed))
    assert [one.verdict for one in failed.bases] == ["failed", "failed"]
    assert isinstance(log[-1], MigrationStopped) and log[-1].rule == "serving"


def test_the_report_names_the_base_model_that_won() -> None:
    log = simulate(skilled(0.3, 0.95), **TWO)
    report = build_report(fold(log), log[-1].at)
    assert report.base_model.model == "owner/b" and report.base_model.marks["exact-match"]["exact"].n == 200
    (part,) = report.rounds
    assert part.base_model == "owner/b" and part.marks["exact-match"]["exact"].mean > 0.9
    assert [(one.model, one.verdict) for one in part.bases] == [("owner/a", "failed"), ("owner/b", "passed")]
    assert report.holdout["exact-match"]["exact"].n == 50 and report.trust.holdout
    assert part.adapter_digest == part.bases[1].adapter_digest != part.bases[0].adapter_digest
    assert "owner/b passed" in part.note and "of owner/b; owner/a failed, owner/b passed" in summary(report)
    page = report_html(report)
    assert "<h2>Base models</h2>" in page and "owner/a" in page
    ordinary = simulate(learner(0.95))
    one = build_report(fold(ordinary), ordinary[-1].at)
    assert one.rounds[0].bases == [] and one.rounds[0].base_model is None and one.base_model.model == "base"
    assert "<h2>Base models</h2>" not in report_html(one)


def gave_up(job: Event, consumer: str = "trainer") -> WorkFailed:
    return WorkFailed(
        migration="m-1", consumer=consumer, subject=job.type, job=job.id, error="out of memory", attempts=3
    )


LARGER = TrainingRequested(migration="m-1", round=0, base=1)


def test_a_base_model_whose_training_was_given_up_leaves_the_round_to_the_others() -> None:
    log: list[AnyEvent] = [requested(**TWO), dataset(0), LARGER, trained(0, base=1), gave_up(dataset(0))]
    asked = [e.candidate.key for e in due(fold(log), START) if isinstance(e, ResponsesRequested)]
    assert "round-0-base-1" in asked and "round-0" not in asked
    # Put back from the dead letters and trained after all: it counts again.
    view = fold([*log, trained(0)])
    assert [one.word for one in standings(view, MigrationSpec.model_validate({**SPEC, **TWO}), 0, 8)] == ["waiting"]


def test_without_any_left_it_ends_with_what_was_given_up() -> None:
    view = fold([requested(**TWO), dataset(0), LARGER, gave_up(dataset(0)), gave_up(LARGER)])
    stop = due(view, START)[-1]
    assert isinstance(stop, MigrationStopped) and stop.rule == "error" and "out of memory" in stop.reason


@pytest.mark.parametrize("job", [dataset(0), LARGER])
def test_what_another_service_gives_up_ends_it_all_the_same(job: DatasetReady | TrainingRequested) -> None:
    view = fold([requested(**TWO), dataset(0), LARGER, gave_up(job, "verdict")])
    assert isinstance(due(view, START)[-1], MigrationStopped)


def test_a_base_model_that_cannot_be_served_leaves_the_round_to_the_others() -> None:
    log: list[AnyEvent] = [requested(**TWO), dataset(0), LARGER, trained(0), trained(0, base=1)]
    asked = next(e for e in due(fold(log), START) if isinstance(e, ResponsesRequested) and e.candidate.round == 0)
    later = due(fold([*log, asked, gave_up(asked, "inference")]), START)
    assert not any(isinstance(e, MigrationStopped) for e in later)
    assert "round-0-base-1" in [e.candidate.key for e in later if isinstance(e, ResponsesRequested)]


def test_the_only_base_model_is_never_spared() -> None:
    view = fold([requested(), dataset(0), gave_up(dataset(0))])
    assert isinstance(due(view, START)[-1], MigrationStopped)


def verdict_on_all(view: MigrationView, of: int) -> list[str]:
    spec = view.spec
    assert spec is not None
    return [one.word for one in standings(view, spec, 0, of)]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from([0.2, 0.5, 0.68, 0.72, 0.9, 0.99]), min_size=2, max_size=3), st.integers(0, 999))
def test_the_winner_is_the_smallest_that_passes_in_whatever_order_events_come(shares: list[float], seed: int) -> None:
    names = [f"owner/{n}" for n in range(len(shares))]
    log = simulate(skilled(*shares), base_model="", base_models=names, budgets={"rounds": 1}, test=125)
    decided = next(e for e in log if isinstance(e, EvalFailed | EvalPassed))
    before = log[: log.index(decided)]
    keys = [Candidate(kind="adapter", round=0, base=base).key for base in range(len(shares))]
    asked = [key for key in answered(log) if key in keys]
    if isinstance(decided, EvalPassed):
        assert all(one.verdict in ("failed", "undecided") for one in decided.bases[:-1])
        assert asked == keys[: decided.base + 1]
        assert shares[decided.base] > 0.5
    else:
        assert asked == keys and len(decided.bases) == len(shares)
        means = [one.marks["exact-match"]["exact"].mean for one in decided.bases]
        assert means[decided.base] == max(means)
    shuffled = [*before, *before[::3]]
    random.Random(seed).shuffle(shuffled)
    one, other = fold(before), fold(shuffled)
    assert one == other and one.spec is not None
    turn, again = turn_of(one, one.spec, 0, 5), turn_of(other, one.spec, 0, 5)
    assert turn is not None and again is not None and turn.candidate == again.candidate
    assert turn.outcome.verdict == again.outcome.verdict == decided.verdict


def test_a_larger_one_is_asked_for_only_after_every_smaller_one_has_failed() -> None:
    log = simulate(skilled(0.3, 0.5, 0.95), **THREE)
    for place, event in enumerate(log):
        if isinstance(event, ResponsesRequested) and event.candidate.kind == "adapter" and event.candidate.base:
            words = verdict_on_all(fold(log[:place]), 8)[: event.candidate.base]
            assert words == ["failed"] * event.candidate.base


def test_several_share_the_error_of_a_look() -> None:
    one, two = (MigrationSpec.model_validate({**SPEC, **more}) for more in ({}, TWO))
    assert alpha_of_look(two, 0, []) == alpha_of_look(one, 0, []) / 2


def test_ids_of_the_ordinary_form_are_what_they_were() -> None:
    assert trained(3).job_key() == (3,) and trained(3, base=1).job_key() == (3, 1)
    assert Candidate(kind="base", base=1).key == "base-1" and Candidate(kind="base").key == "base"
    assert Candidate(kind="adapter", round=2).key == "round-2"
    spec = MigrationSpec.model_validate({**SPEC, "coverage": "any"})
    as_before = content_digest(spec.model_dump(mode="json", exclude={"coverage", "columns", "base_models"}))
    assert migration_id(spec, [], 1) == "m-" + identity("migration", as_before, dataset_digest([]), 1)[:16]
    assert migration_id(MigrationSpec.model_validate({**SPEC, **TWO}), [], 1) != migration_id(spec, [], 1)


@pytest.mark.parametrize("key", ["base_model", "base_models"])
def test_a_frozen_spec_is_read_back(key: str) -> None:
    spec = MigrationSpec.model_validate(
        {**SPEC, "base_model": ""} | {key: "a" if key == "base_model" else ["a", "b"]}
    )
    assert MigrationSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec.bases == (["a"] if key == "base_model" else ["a", "b"])
