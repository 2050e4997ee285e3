"""A veto: one violation and the round is not passed, whatever the means say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llamaduo.cli.spec_checks import EvaluatorOnBus, check_evaluators
from llamaduo.errors import UserInputError
from llamaduo.event_parts import Candidate, MetricRange, RowMark
from llamaduo.events import EvalScored, MigrationStopped, ResponsesRequested, WorkFailed
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.migrations.spec_file import parse_spec
from services.verdict.deciding import due
from services.verdict.judging import Outcome, judge_round
from tests.simulated import SPEC, START, dataset, generated, learner, requested, scored, simulate, trained

EVALUATORS = ["exact-match", {"name": "no-secrets", "role": "veto"}]
CLEAN = MetricRange(low=0, high=0.9)
COUNT = MetricRange(low=0, high=5, higher_is_better=False)


def marks(
    shard: int, values: Mapping[int, Sequence[float | None]], *, best: float = 0.9, scale: MetricRange = CLEAN
) -> list[EvalScored]:
    """A shard of ten prompts, all right; of `no-secrets` each is at its best but for `values` (a mark a sample)."""
    place: dict[str, Any] = {
        "migration": "m-1", "candidate": Candidate(kind="base"), "split": "test", "shard": shard, "of": 20,
        "version": "1",
    }  # fmt: skip
    right = [RowMark(row=f"{shard}-{i}", metric="exact", value=1.0) for i in range(10)]
    secrets = [
        RowMark(row=f"{shard}-{i}", metric="clean", sample=k, value=v, reason="" if v == best else "it tells a key")
        for i in range(10)
        for k, v in enumerate(values.get(i, (best, best, best)))
    ]
    return [
        EvalScored(**place, evaluator="exact-match", metrics={"exact": MetricRange(low=0, high=1)}, marks=right),
        EvalScored(**place, evaluator="no-secrets", metrics={"clean": scale}, marks=secrets),
    ]


def decided(shards: list[list[EvalScored]], **spec: Any) -> Outcome:
    asked = MigrationSpec.model_validate({**SPEC, "evaluators": EVALUATORS, **spec})
    return judge_round(asked, 0, 20, dict(enumerate(shards)), {})


def test_without_a_violation_the_means_decide() -> None:
    outcome = decided([marks(n, {}) for n in range(20)])
    assert (outcome.verdict, outcome.note) == ("passed", f"no-secrets.clean: no violation in {outcome.rows} prompts")
    assert outcome.rows < 100


def test_one_bad_sample_of_one_prompt_fails_the_round_and_names_it() -> None:
    outcome = decided([marks(0, {3: (0.9, 0.9, 0.8)}), *(marks(n, {}) for n in range(1, 20))])
    assert outcome.verdict == "failed"
    assert outcome.note == f"no-secrets.clean vetoes: 1 of {outcome.rows} prompts violate it"
    assert [(row.row, row.reasons) for row in outcome.failures] == [("0-3", ["it tells a key"])]
    assert outcome.rows == 200


def test_a_violation_after_enough_failing_rows_are_known_ends_the_marking() -> None:
    outcome = decided([marks(n, {0: (0.0,)}) for n in range(20)], marking={"failures_wanted": 3})
    assert (outcome.verdict, outcome.rows) == ("failed", 30)


def test_lower_may_be_better() -> None:
    assert decided([marks(n, {}, best=0, scale=COUNT) for n in range(20)]).verdict == "passed"
    bad = [marks(0, {0: (1.0,)}, best=0, scale=COUNT), *(marks(n, {}, best=0, scale=COUNT) for n in range(1, 20))]
    assert decided(bad).verdict == "failed"


def test_silence_is_no_consent() -> None:
    few = decided([marks(n, {0: (None,)}) for n in range(20)])
    assert few.verdict == "passed"
    many = decided([marks(n, {0: (None,), 1: (None,)}) for n in range(20)])
    assert (many.verdict, many.note) == ("undecided", "too many answers went unmarked to pass")


def test_an_evaluator_that_declares_no_metric_decides_nothing() -> None:
    shards = [marks(n, {}) for n in range(20)]
    mute = [[one.model_copy(update={"metrics": {}}) for one in shard] for shard in shards]
    with pytest.raises(ValueError, match="has a veto and declares no metric"):
        decided([[shard[0], no] for shard, (_, no) in zip(shards, mute, strict=True)])
    with pytest.raises(ValueError, match="declare no metric"):
        decided([[no, shard[1]] for shard, (no, _) in zip(shards, mute, strict=True)], gate={"parity": {"margin": 5}})
    with pytest.raises(ValueError, match="no evaluator gives"):
        decided(mute)


def test_a_veto_is_waited_for_and_missed_as_a_required_one_is() -> None:
    view = fold([requested(evaluators=EVALUATORS), dataset(0), trained(0)])
    asked = next(e for e in due(view, START) if isinstance(e, ResponsesRequested) and e.candidate.key == "round-0")
    answer = generated(asked).model_copy(update={"at": START})
    for event in (asked, answer, scored(answer, ["test-0"], 1.0)):
        view.add(event)
    assert _rule(view) is None
    assert _rule(view, hours=2) == "silent_evaluator"
    dead = WorkFailed(
        migration="m-1", consumer="evaluator-no-secrets", subject="x", job=answer.id, error="e", attempts=3,
        dead_letter="d",
    )  # fmt: skip
    view.add(dead)
    assert _rule(view) == "error"


def test_parity_is_not_asked_of_a_veto() -> None:
    spec = MigrationSpec.model_validate({**SPEC, "evaluators": EVALUATORS, "gate": {"parity": {"margin": 5}}})
    assert (spec.required, spec.vetoes, spec.awaited) == (
        ["exact-match"],
        ["no-secrets"],
        ["exact-match", "no-secrets"],
    )
    shards = {n: marks(n, {}) for n in range(20)}
    service = {n: shard[:1] for n, shard in shards.items()}
    assert judge_round(spec, 0, 20, shards, service).verdict == "passed"


def test_the_spec_and_the_submission_know_the_role() -> None:
    with pytest.raises(ValidationError, match="at least one evaluator must be required"):
        MigrationSpec.model_validate({**SPEC, "evaluators": [{"name": "exact-match", "role": "veto"}]})
    with pytest.raises(ValidationError, match="is not a required evaluator"):
        MigrationSpec.model_validate(
            {**SPEC, "evaluators": EVALUATORS, "gate": {"absolute": {"no-secrets.clean": 1}}}
        )
    found = parse_spec(yaml.safe_dump({**SPEC, "evaluators": EVALUATORS}), "m.yaml")
    with pytest.raises(UserInputError, match="nobody would mark for 'no-secrets'"):
        check_evaluators(found, [EvaluatorOnBus("exact-match", True)])


def test_the_report_names_the_role_the_veto_and_what_the_holdout_says() -> None:
    log = simulate(learner(0.3, 1.0), evaluators=EVALUATORS)
    view = fold(log)
    report = build_report(view, log[-1].at)
    assert {part.name: part.role for part in report.evaluators} == {"exact-match": "required", "no-secrets": "veto"}
    assert [part.verdict for part in report.rounds] == ["failed", "passed"]
    assert "no-secrets.exact vetoes" in report.rounds[0].note
    assert "no violation in" in report.rounds[1].note
    assert not any("vetoed on the holdout" in text for text in report.warnings)
    late = next(e for e in log if isinstance(e, EvalScored) and e.split == "holdout" and e.evaluator == "no-secrets")
    broken = [late.marks[0].model_copy(update={"value": 0.0}), *late.marks[1:]]
    other = fold([late.model_copy(update={"marks": broken}) if e is late else e for e in log])
    [warning] = [text for text in build_report(other, log[-1].at).warnings if "holdout" in text]
    assert warning == "no-secrets would have vetoed on the holdout: 1 of 50 prompts violate it"


def _rule(view: MigrationView, hours: float = 0) -> str | None:
    stops = [e for e in due(view, START + timedelta(hours=hours)) if isinstance(e, MigrationStopped)]
    return stops[0].rule if stops else None
