"""The report from a synthetic log: its figures, and that every prefix and order of a log has one."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.event_parts import CallCounts
from llamaduo.events import (
    AdapterLoaded,
    AnyEvent,
    BudgetRefused,
    EvalFailed,
    MigrationCancelled,
    MigrationStopped,
    ResponsesGenerated,
    WorkFailed,
    WorkWithdrawn,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import Report, build_report, report_schema
from llamaduo.migrations.stop_advice import ADVICE
from tests.unit.synthetic_log import MIGRATION, at, complete_log, mishaps

LOG = complete_log()
LATER = at(1000)


def report_of(events: list[AnyEvent]) -> Report:
    return build_report(fold(events), LATER)


def test_a_completed_migration() -> None:
    report = report_of(LOG)
    assert report.status == "completed"
    assert report.passed_round == 1
    assert report.ended_because == "round 1 passed"
    assert [r.verdict for r in report.rounds] == ["failed", "passed"]
    assert [r.rows for r in report.rounds] == [30, 130]
    assert [r.steps for r in report.rounds] == [80, 80]
    assert report.rounds[1].removed == {"near_copy": 7, "contamination": 2}
    assert report.served is not None
    assert report.served.alias == "support-triage"
    assert report.served.urls == ["http://127.0.0.1:8001/v1"]


def test_a_replica_whose_engine_changed_is_named_by_its_new_address() -> None:
    first = next(e for e in LOG if isinstance(e, AdapterLoaded) and e.url.endswith(":8001/v1"))
    moved = first.model_copy(update={"url": "http://127.0.0.1:9/v1", "at": LATER})
    served = report_of([moved, *LOG]).served
    assert served is not None
    assert served.urls == ["http://127.0.0.1:9/v1"]


def test_the_verdicts_interval_stands_and_other_evaluators_get_wilsons() -> None:
    first = report_of(LOG).rounds[0].marks
    assert first["exact-match"]["exact"].high == 0.6
    assert first["llm-judge"]["similarity"].n == 6


def test_base_service_and_holdout_stand_beside_it() -> None:
    report = report_of(LOG)
    assert report.base_model.marks["exact-match"]["exact"].mean == 0
    assert report.service_llm.marks["exact-match"]["exact"].mean == 1
    assert report.holdout["exact-match"]["exact"].mean == pytest.approx(7 / 8)
    assert report.service_llm.model == "openai:gpt-x"


def test_seconds_by_round() -> None:
    report = report_of(LOG)
    first, second = report.rounds[0].seconds, report.rounds[1].seconds
    assert first.wall == 40
    assert first.training == second.training == 9
    assert second.service_llm == 4 + 2
    assert second.wall == 20
    assert second.other == pytest.approx(20 - 4 - 9 - 4)
    assert report.closing_seconds.wall == 10
    assert report.seconds.wall == 70
    total = first.other + second.other + report.closing_seconds.other
    assert report.seconds.other == pytest.approx(total)


def test_calls_and_money() -> None:
    calls = report_of(LOG).calls
    shards = 2 * 5
    assert calls.made == 10 + 8 + 3 * shards
    assert calls.from_ledger == shards
    assert calls.rebought == 1
    assert calls.money == pytest.approx(0.01 * shards)
    assert calls.machine_money == pytest.approx(0.07)


def test_what_was_bought_for_work_without_a_result_is_counted_once() -> None:
    before = report_of(LOG).calls
    bought = CallCounts(made=3, money=0.5)
    (migration,) = {event.migration for event in LOG}
    refused = BudgetRefused(migration=migration, what="calls", limit=3, spent=3, job="lost", calls=bought)
    marked = next(e for e in LOG if isinstance(e, ResponsesGenerated) and e.candidate.kind == "base")
    dead = {"migration": migration, "consumer": "evaluator-llm-judge", "subject": marked.type, "error": "e"}
    lost = WorkFailed(**dead, job="lost", attempts=3, dead_letter="a", calls=bought)
    replayed = WorkFailed(**dead, job=marked.id, attempts=3, dead_letter="b", calls=bought)
    after = report_of([*LOG, refused, lost, replayed]).calls
    assert after.made == before.made + 6
    assert after.money == pytest.approx(before.money + 1)


def test_work_that_was_given_up_put_back_and_withdrawn_is_counted_once() -> None:
    before = report_of(LOG).calls
    bought = CallCounts(made=3, money=0.5)
    (migration,) = {event.migration for event in LOG}
    work = {"migration": migration, "consumer": "evaluator-llm-judge", "job": "lost", "calls": bought}
    given_up = WorkFailed(**work, subject="responses.generated", error="e", attempts=3, dead_letter="a")
    after = report_of([*LOG, given_up, WorkWithdrawn(**work)]).calls
    assert after.made == before.made + 3
    assert after.money == pytest.approx(before.money + 0.5)


def test_it_says_what_to_know_before_trusting_it() -> None:
    warnings = "\n".join(report_of([*LOG[:5], *mishaps(), *LOG[5:]]).warnings)
    assert "a server on this machine" in warnings
    assert "from 8 prompts" in warnings
    assert "llm-judge.similarity withheld 10 of 40 marks" in warnings
    assert "1 calls in flight at a kill may have been paid twice: marks of llm-judge for base" in warnings
    assert "llamaduo dlq show dl-7" in warnings
    assert "budget of 1 money" in warnings
    assert "round 0: 1 of 30 training rows" in warnings


def test_prompts_without_an_answer_and_answers_that_were_cut_are_counted() -> None:
    first = next(e for e in LOG if isinstance(e, ResponsesGenerated) and e.candidate.key == "round-0")
    told = first.model_copy(update={"too_long": 2, "cut": 3, "rows": 8})
    asked = sum(e.rows for e in LOG if isinstance(e, ResponsesGenerated) and e.candidate.key == "round-0")
    total = asked - first.rows + 8
    warnings = "\n".join(report_of([told if event is first else event for event in LOG]).warnings)
    assert f"round-0: 2 of {total} prompts did not fit the model's window and have no answer" in warnings
    assert f"round-0: 3 answers to {total} prompts were cut at generation.max_tokens" in warnings
    assert "did not fit" not in "\n".join(report_of(LOG).warnings)


def test_an_undecided_round_says_how_many_prompts_would_decide() -> None:
    failed = next(e for e in LOG if isinstance(e, EvalFailed))
    undecided = failed.model_copy(update={"verdict": "undecided"})
    report = report_of([*LOG[: LOG.index(failed)], undecided])
    assert any("prompts would decide it" in warning for warning in report.warnings)


def test_a_verdict_that_was_sure_early_does_not_make_the_test_set_small() -> None:
    def larger(event: AnyEvent) -> AnyEvent:
        return (
            event.model_copy(update={"rows": {"train": 30, "test": 200}}) if event.type == "dataset.ready" else event
        )

    assert not any(
        "prompts" in warning and "±" in warning for warning in report_of([larger(e) for e in LOG]).warnings
    )


def test_no_secret_of_an_address_is_in_it() -> None:
    assert "hunter2" not in report_of(LOG).model_dump_json()


def test_other_ends() -> None:
    stopped = report_of([*LOG[:3], MigrationStopped(migration=MIGRATION, rule="rounds", reason="5 rounds")])
    assert (stopped.status, stopped.stopped_rule, stopped.ended_because) == ("stopped", "rounds", "5 rounds")
    assert stopped.what_to_do == ADVICE["rounds"]
    assert report_of(LOG).what_to_do == ""
    assert report_of([*LOG[:3], MigrationCancelled(migration=MIGRATION)]).status == "cancelled"


def test_evaluators_and_roles() -> None:
    roles = {part.name: part.role for part in report_of(LOG).evaluators}
    assert roles == {"exact-match": "required", "llm-judge": "advisory"}


def test_one_that_nobody_asked_still_shows() -> None:
    extra = [
        e.model_copy(update={"evaluator": "length"})
        for e in LOG
        if e.type == "eval.scored" and e.evaluator == "exact-match"
    ]
    report = report_of([*LOG, *extra])
    assert "length" in report.rounds[1].marks
    assert {p.name: p.role for p in report.evaluators}["length"] == "not asked"


@pytest.mark.parametrize("length", range(1, len(LOG) + 1))
def test_every_prefix_has_a_report(length: int) -> None:
    report = report_of(LOG[:length])
    jsonschema.validate(json.loads(report.model_dump_json()), report_schema())
    assert report.status == ("completed" if length == len(LOG) else "running")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*LOG, *mishaps()]), min_size=1), st.floats(-100, 2000))
def test_any_part_of_a_log_in_any_order_has_a_report(events: list[AnyEvent], now: float) -> None:
    report = build_report(fold(events), at(now))
    assert Report.model_validate_json(report.model_dump_json()) == report
    for part in [*report.rounds]:
        assert 0 <= part.seconds.other <= part.seconds.wall + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.permutations(LOG))
def test_the_order_of_arrival_changes_nothing_but_lists_of_warnings(events: list[AnyEvent]) -> None:
    one, other = report_of(LOG), report_of(events)
    assert sorted(one.warnings) == sorted(other.warnings)
    none: dict[str, list[str]] = {"warnings": []}
    assert one.model_copy(update=none) == other.model_copy(update=none)


def test_an_empty_view_has_one_too() -> None:
    assert build_report(MigrationView(MIGRATION), LATER).status == "running"
