"""A floor for the worst part of the test rows: reported always, decides only where the spec says so."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from llamaduo.cli.submission import prepare
from llamaduo.datasets import Message, ShardRow
from llamaduo.errors import UserInputError
from llamaduo.evaluating import slices_of
from llamaduo.event_parts import Candidate, MetricRange, RowMark
from llamaduo.events import EvalScored
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import report_html
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.migrations.spec_file import parse_spec
from services.verdict.judging import Outcome, judge_round
from tests.simulated import SPEC, START, dataset, requested
from tests.unit.test_cli_submission import GOOD, KEYS, write

ADAPTER = Candidate(kind="adapter", round=0)


def gate(floor: float = 0.6, **rule: Any) -> dict[str, Any]:
    return {"absolute": {"exact-match.exact": 0.7}, "slices": {"language": {"floor": floor, **rule}}}


def shards(seed: int, german: float, english: float = 0.98, every: int = 4) -> dict[int, list[EvalScored]]:
    """200 marks of 0 and 1; every `every`th row is German and right with that share."""
    draw = random.Random(seed)
    made = {}
    for shard in range(8):
        rows = {f"{shard}-{i}": "de" if i % every == 0 else "en" for i in range(25)}
        marks = [
            RowMark(row=row, metric="exact", value=float(draw.random() < (german if where == "de" else english)))
            for row, where in rows.items()
        ]
        made[shard] = [
            EvalScored(
                migration="m-1", candidate=ADAPTER, split="test", shard=shard, of=8, evaluator="exact-match",
                version="1", metrics={"exact": MetricRange()}, marks=marks, slices={"language": rows},
            )
        ]  # fmt: skip
    return made


def decide(rule: dict[str, Any], local: dict[int, list[EvalScored]]) -> Outcome:
    return judge_round(MigrationSpec.model_validate({**SPEC, "gate": rule}), 0, 8, local, {})


def test_a_weak_part_does_not_decide_unless_it_is_asked_to() -> None:
    local = shards(1, german=0.1, every=8)
    assert decide(gate(), local).verdict == "passed"
    failed = decide(gate(decides=True), local)
    assert failed.verdict == "failed" and failed.note == "language 'de' is below its floor"
    assert failed.sure_after < 200


def test_a_part_below_its_floor_though_not_for_sure_is_undecided() -> None:
    outcomes = [decide(gate(decides=True), shards(seed, german=0.5)) for seed in range(20)]
    undecided = [o for o in outcomes if o.verdict == "undecided"]
    assert undecided and all("not for sure: language 'de'" in o.note and o.rows == 200 for o in undecided)


def test_strong_parts_pass_once_each_has_enough_rows() -> None:
    local = shards(2, german=0.95)
    early, later = decide(gate(), local), decide(gate(decides=True, min_rows=20), local)
    assert (early.verdict, later.verdict) == ("passed", "passed")
    assert early.rows < later.rows < 200
    german = sum(row.slices["language"] == "de" for row in later.seen)
    assert german >= 20


def test_a_part_with_too_few_rows_is_asked_nothing() -> None:
    local = shards(3, german=0.0, every=25)
    assert decide(gate(decides=True, min_rows=20), local).verdict == "passed"


def test_a_floor_that_no_row_is_asked_about_is_an_error_and_never_a_pass() -> None:
    local = shards(2, german=0.95)
    for scored in local.values():
        scored[0] = scored[0].model_copy(update={"slices": {}})
    assert decide(gate(), local).verdict == "passed"
    with pytest.raises(ValueError, match="no marked test row has a value"):
        decide(gate(decides=True), local)


def test_marking_again_does_not_pass_a_round_by_a_part_that_it_has_not_come_to() -> None:
    """Repeats of English rows are all right, and sure of the gate long before the last shard, the only German one."""
    local = {}
    for shard, (scored,) in shards(0, german=1.0).items():
        right, where = (0.7, "de") if shard == 7 else (0.8, "en")
        marks = [m.model_copy(update={"value": float(n * 7 % 25 / 25 < right)}) for n, m in enumerate(scored.marks)]
        rows = {"language": {mark.row: where for mark in marks}}
        once = scored.model_copy(update={"marks": marks, "noisy": True, "slices": rows})
        again = marks if where == "de" else [mark.model_copy(update={"value": 1.0}) for mark in marks]
        local[shard] = [once, *(once.model_copy(update={"marks": again, "repeat": n}) for n in range(1, 5))]
    spec = {**SPEC, "marking": {"repeats": 4, "failures_wanted": 0}}
    free, bound = (
        judge_round(MigrationSpec.model_validate({**spec, "gate": rule}), 0, 8, local, {})
        for rule in (gate(0.8), gate(0.8, decides=True))
    )
    assert free.verdict == "passed" and "certain after" in free.note
    assert bound.verdict == "undecided" and "200 prompts were marked again" in bound.note


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_at_their_floor_fail_a_round_no_more_often_than_was_promised(parts: int) -> None:
    wrong = 0
    for seed in range(200):
        local = shards(seed, german=0.8, english=0.8)
        for scored in local.values():
            rows = {mark.row: str(n % parts) for n, mark in enumerate(scored[0].marks)}
            scored[0] = scored[0].model_copy(update={"slices": {"language": rows}})
        wrong += decide(gate(0.8, decides=True, min_rows=5), local).verdict == "failed"
    assert wrong <= 0.05 * 200


@pytest.mark.parametrize(
    ("column", "found"),
    [("language", {"a": "de", "b": "7"}), ("nothing", {})],
)
def test_values_come_from_meta_as_text(column: str, found: dict[str, str]) -> None:
    def row(name: str, **meta: Any) -> ShardRow:
        return ShardRow(
            row=name, messages=[Message(role="user", content="x")], reference="y", answers=["y"], meta=meta
        )

    rows = [row("a", language="de", other=1), row("b", language=7), row("c", other=2), row("d", language=None)]
    assert slices_of(rows, [column]) == {column: found}


@pytest.mark.parametrize(
    "rule",
    [
        {"parity": {"margin": 3}, "slices": {"language": {"floor": 0.6}}},
        {**gate(), "slices": {"language": {"floor": 0.6, "metric": "llm-judge.similarity"}}},
    ],
)
def test_a_floor_names_a_metric_of_a_required_evaluator(rule: dict[str, Any]) -> None:
    with pytest.raises(UserInputError, match=r"gate\.slices\.language"):
        parse_spec(yaml.safe_dump({**SPEC, "gate": rule}), "m.yaml")


def test_the_worst_part_is_first_also_where_less_is_better() -> None:
    view = MigrationView("m-1")
    view.add(requested(gate=gate(0.4)))
    view.add(dataset(0))
    for scored in shards(1, german=0.9, english=0.1).values():
        view.add(scored[0].model_copy(update={"metrics": {"exact": MetricRange(higher_is_better=False)}}))
    parts = build_report(view, START).trust.slices
    assert [(part.value, part.state) for part in parts] == [("de", "below"), ("en", "above")]


def test_a_floor_of_a_column_that_no_row_has_is_refused_at_the_door(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("0.7}", "0.7}\n  slices: {langage: {floor: 0.5}}"))
    with pytest.raises(UserInputError, match="no row has a column 'langage'"):
        prepare(path, environment=KEYS)
    lines = [json.dumps({"prompt": f"question {i}", "response": f"answer {i}", "language": "de"}) for i in range(40)]
    (tmp_path / "tickets.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserInputError, match="did you mean 'language'"):
        prepare(path, environment=KEYS)
    path.write_text(path.read_text().replace("langage", "language"))
    assert len(prepare(path, environment=KEYS).rows) == 40


@pytest.mark.parametrize(("german", "state"), [(0.1, "below"), (1.0, "above")])
def test_the_report_shows_the_worst_part_first(german: float, state: Literal["above", "below"]) -> None:
    view = MigrationView("m-1")
    view.add(requested(gate=gate()))
    view.add(dataset(0))
    for scored in shards(1, german=german).values():
        view.add(scored[0])
    report = build_report(view, START)
    worst = report.trust.slices[0]
    assert len(report.trust.slices) == 2 and worst.low <= worst.mean <= worst.high
    assert {part.value: part.state for part in report.trust.slices}["de"] == state
    assert any("where language is 'de'" in warning for warning in report.warnings) == (state == "below")
    if state == "below":
        assert worst.value == "de" and worst.n == 56
    assert "language: de" in report_html(report)
