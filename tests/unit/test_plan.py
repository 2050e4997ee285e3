"""What a plan says of calls, money, hours, memory and test rows; and when `migrate` asks."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaduo.cli.main import call
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Message, Row, make_row
from llamaduo.migrations.resolution import alpha_of_round
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.planning.known_models import FIRST_TRIES, first_try, licence_note, parameters_of
from llamaduo.planning.machine import Gpu, Machine, gpu_of
from llamaduo.planning.page import key_lines, page
from llamaduo.planning.plan import Plan, figure, plan_of
from llamaduo.planning.telling import GRADED_SPREAD, telling_of
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.prices import largest
from services.verdict.statistics import Wealth
from tests.unit.test_cli_submission import write

SPEC: dict[str, Any] = {
    "name": "triage",
    "coverage": "rows.jsonl",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "service_llm": "openai:gpt-4o",
    "gate": {"absolute": {"llm-judge.similarity": 70}},
    "splits": {"test": 200, "holdout": 40},
    "generation": {"max_tokens": 64},
    "budgets": {"rounds": 3},
}
SMALL = Machine(2, 23.5)


def rows(number: int = 400) -> list[Row]:
    return [
        make_row(
            [Message(role="user", content=f"question {i:04} " * 4), Message(role="assistant", content="yes " * 5)]
        )
        for i in range(number)
    ]


def dollars(llm: ServiceLLM, input_tokens: int, output_tokens: int) -> float | None:
    return None if llm.model == "openai:unknown" else (input_tokens + 4 * output_tokens) / 1e6


def planned(machine: Machine = SMALL, number: int = 400, **changes: Any) -> Plan:
    return plan_of(MigrationSpec.model_validate({**SPEC, **changes}), rows(number), machine, dollars)


def test_calls_by_stage() -> None:
    plan = planned()
    calls = {stage.name: (stage.once, stage.first, stage.every, stage.most) for stage in plan.stages}
    assert calls == {
        "its own answers to the test prompts": (200, 200, 200, 200),
        "marks of these answers": (200, 200, 200, 200),
        "marks of the untrained base": (200, 200, 200, 200),
        "marks of the model": (200, 25, 600, 600),
        "marks of the holdout": (40, 40, 40, 40),
        "new training rows": (17, 0, 34, 400),
    }
    assert (plan.calls.first, plan.calls.every, plan.calls.most) == (665, 1274, 1640)
    assert plan.rows == {"train": 120, "validation": 40, "test": 200, "holdout": 40}


def test_samples_and_baseline_rows_count() -> None:
    plan = planned(generation={"answers": 3, "max_tokens": 64}, marking={"baseline_rows": 30})
    calls = {stage.name: stage.every for stage in plan.stages}
    assert calls["its own answers to the test prompts"] == 600
    assert calls["marks of the untrained base"] == 150, "two shards of 25 rows, three answers each"
    assert calls["marks of the model"] == 3 * 600


def test_a_metric_without_a_service_llm_costs_no_judge_calls() -> None:
    plan = planned(evaluators=["exact-match"], gate={"absolute": {"exact-match.exact": 0.7}})
    assert [stage.name for stage in plan.stages] == ["its own answers to the test prompts", "new training rows"]


def test_at_most_is_what_the_budgets_door_counts_with_response_formats_too() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "größe", "schema": {"type": "object"}}}
    talk = [Message(role="system", content="Grüße"), *rows(1)[0].messages]
    asked = [*rows(20), *(make_row([*talk[:-1], Message(role="assistant", content=str(i))], response_format=form)
                          for i in range(20))]  # fmt: skip
    spec = MigrationSpec.model_validate({**SPEC, "splits": {}})
    own = plan_of(spec, asked, SMALL, dollars).stages[0]
    held = [
        largest(
            Call(
                messages=[message.model_dump() for message in row.prompt],
                llm=spec.service_llm,
                migration="m",
                job="j",
                max_tokens=64,
                response_format=row.response_format,
            )
        )
        for row in asked
    ]
    assert own.input_tokens_most + own.output_tokens_most == pytest.approx(sum(one.tokens for one in held) / 40)
    plain = plan_of(spec, [row.model_copy(update={"response_format": None}) for row in asked], SMALL, dollars)
    assert own.input_tokens > plain.stages[0].input_tokens


def test_the_teachers_checks_and_doubling_rows_count() -> None:
    synthesis = {"rows_rule": "double", "rows_per_round": 200, "self_check": True}
    calls = {stage.name: (stage.first, stage.every, stage.most) for stage in planned(synthesis=synthesis).stages}
    assert calls["new training rows"] == (0, 14 + 23, 400), "120 train rows are doubled, then 200 more are the limit"
    assert calls["checks of these rows"] == (0, 37, 400)


def test_a_limit_on_tokens_takes_hours() -> None:
    slow = planned(service_llm={"model": "openai:gpt-4o", "tokens_per_minute": 1000})
    assert (slow.hours.first or 0) > (planned().hours.first or 0) + 1


def test_one_round_writes_no_rows() -> None:
    assert "new training rows" not in {stage.name for stage in planned(budgets={"rounds": 1}).stages}


def test_money_is_a_range_and_the_largest_is_the_largest() -> None:
    plan = planned()
    assert plan.money is not None
    assert 0 < plan.money.first < plan.money.every < plan.money.most
    by_hand = sum(
        stage.every * (round(stage.input_tokens) + 4 * round(stage.output_tokens)) / 1e6 for stage in plan.stages
    )
    assert plan.money.every == pytest.approx(by_hand)


def test_batches_halve_the_price_and_say_how_long_they_may_take() -> None:
    whole, half = planned(), planned(service_llm={"model": "openai:gpt-4o", "batch": True})
    assert whole.money is not None and half.money is not None
    assert (half.money.first, half.money.every) == pytest.approx((whole.money.first / 2, whole.money.every / 2))
    assert half.money.most == whole.money.most, "what a batch lacks is asked online"
    assert "asked in batches" not in page(whole)
    said = page(half)
    assert "asked in batches, at 50% of the price; the answers of each piece of work may take up to 24 h" in said
    assert "budgets.hours: 24 may go by before the first batch is answered" in said
    mixed = planned(judge={"model": "openai:gpt-4o", "batch": {"wait_hours": 2}})
    assert "! judge: asked in batches" in page(mixed) and "may go by before" not in page(mixed)


def test_each_role_has_its_own_price() -> None:
    cheap = planned(judge="openai:unknown")
    assert cheap.money is None
    assert cheap.unpriced == ["openai:unknown"]
    assert "price unknown (openai:unknown)" in page(cheap)
    unread = planned(teacher="openai:unknown", budgets={"rounds": 1})
    assert unread.money is not None, "a teacher that is never called needs no price"


def test_the_real_price_list_knows_a_common_model() -> None:
    from llamaduo.cli.plan_command import price

    gpt = ServiceLLM(model="openai:gpt-4o")
    assert price(gpt, 1_000_000, 0) == pytest.approx(2.5)
    assert price(ServiceLLM(model="openai:scripted-teacher"), 1000, 1000) is None


def test_the_demo_took_what_its_plan_says() -> None:
    """Measured on two cores: 524, 617 and 1,038 s in all; in three rounds 980 calls, 290 of them from the ledger."""
    folder = Path(__file__).parents[2] / "examples" / "support-triage"
    spec = MigrationSpec.model_validate(yaml.safe_load((folder / "migration.yaml").read_text()))
    plan = plan_of(spec, read_coverage(folder / "tickets.jsonl"), SMALL, dollars)
    assert plan.hours.first is not None and plan.hours.every is not None
    assert plan.hours.first * 3600 < 524
    assert plan.hours.every * 3600 > 1038
    assert plan.calls.first < 980 < plan.calls.every
    assert plan.memory.training_gib is not None and plan.memory.serving_gib is not None
    assert plan.memory.training_gib + plan.memory.serving_gib == pytest.approx(6.7, rel=0.15)


def test_hours_grow_with_model_and_rounds_and_shrink_with_cores() -> None:
    small, large = planned(), planned(base_model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
    more_cores, one_round = planned(Machine(8, 64)), planned(budgets={"rounds": 1})
    every = [plan.hours.every or 0 for plan in (one_round, more_cores, small, large)]
    assert every[0] < every[2] < every[3]
    assert every[1] < every[2]


def test_no_hours_are_made_up_for_a_gpu_or_an_unknown_size() -> None:
    on_gpu = planned(Machine(16, 128, (Gpu("NVIDIA H100", 80.0),)))
    assert on_gpu.hours.every is None
    assert "no speed was measured on a GPU" in page(on_gpu)
    assert "size of the base model is unknown" in page(planned(base_model="owner/model"))


SMALL_AND_LARGE = ["HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.2-1B-Instruct"]


def test_several_base_models_are_all_trained_and_the_largest_must_fit() -> None:
    one, two = planned(), planned(base_model="", base_models=SMALL_AND_LARGE)
    large = planned(base_model=SMALL_AND_LARGE[1])
    assert two.base_model == " or ".join(SMALL_AND_LARGE) and two.memory == large.memory
    # Round 0 passes with the smallest; where all rounds are needed, both are trained, answer and are marked.
    assert two.hours.first == pytest.approx(one.hours.first, rel=0.2)
    assert one.hours.every is not None and large.hours.every is not None and two.hours.every is not None
    assert large.hours.every < two.hours.every < one.hours.every + large.hours.every
    assert (one.calls.first, one.calls.every) < (two.calls.first, two.calls.every)
    notes = "\n".join(two.notes)
    assert f"{SMALL_AND_LARGE[1]}: Llama Community License" in notes and "share the error" in notes
    tight = planned(Machine(4, 8.0), base_model="", base_models=SMALL_AND_LARGE)
    assert [note for note in tight.notes if note.startswith(f"memory: training and serving of {SMALL_AND_LARGE[1]}")]
    assert "size of a base model is unknown" in page(planned(base_model="", base_models=["owner/a", "owner/b-1B"]))


def test_what_does_not_fit_is_said() -> None:
    plan = planned(Machine(4, 8.0), base_model="Qwen/Qwen3-4B-Instruct-2507")
    assert plan.memory.fits is False
    assert any(note.startswith("memory: training and serving together take about") for note in plan.notes)
    assert planned().memory.fits is True
    assert planned(Machine(2, None)).memory.fits is None


def test_budgets_are_held_against_the_plan() -> None:
    few = planned(budgets={"rounds": 3, "calls": 500})
    assert (
        "budgets.calls: 500 is less than one round needs (about 660): it would stop before it can pass" in few.notes
    )
    some = planned(budgets={"rounds": 3, "calls": 1000})
    assert "budgets.calls: 1000 may end it before all 3 rounds (about 1,300)" in some.notes
    assert not [note for note in planned(budgets={"rounds": 3, "calls": 1274}).notes if note.startswith("budgets")]
    short = planned(budgets={"rounds": 3, "hours": 0.01, "money": 0.01, "tokens": 100})
    assert {note.split(":")[0] for note in short.notes} >= {"budgets.hours", "budgets.money", "budgets.tokens"}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("google/gemma-3-270m-it", "Gemma Terms of Use"),
        ("meta-llama/Llama-3.2-1B-Instruct", "Llama Community License"),
        ("unsloth/Llama-3.2-1B-Instruct", "Llama Community License"),
    ],
)
def test_restricted_licences_are_named(model: str, says: str) -> None:
    note = licence_note(model)
    assert note is not None and note.startswith(says)
    assert ("HF_TOKEN" in note) is not model.startswith("unsloth")
    assert note in planned(base_model=model).notes


@pytest.mark.parametrize("model", [*(known.hub_id for known in FIRST_TRIES), "TinyLlama/TinyLlama-1.1B-Chat-v1.0"])
def test_open_licences_are_not(model: str) -> None:
    assert licence_note(model) is None
    assert parameters_of(model)


def test_weights_are_counted_in_the_folder_or_read_from_the_name(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [30, 20]}, "b": {"shape": [5]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert parameters_of(str(tmp_path)) == 605
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert parameters_of(str(tmp_path)) is None
    assert parameters_of("HuggingFaceTB/SmolLM2-1.7B-Instruct") == 1_700_000_000
    assert parameters_of("/models/SmolLM2-135M-Instruct.Q4_1.gguf") == 135_000_000
    assert parameters_of("owner/model-v3@main") is None


@pytest.mark.parametrize(("rows_there", "gate"), [(200, 0.7), (100, 0.6), (400, 0.8)])
def test_the_gap_is_told_in_nine_of_ten_cases(rows_there: int, gate: float) -> None:
    """Played with the verdict's own gamblers: yes/no marks whose mean is the gate and the gap."""
    import random

    spec = MigrationSpec.model_validate(
        {**SPEC, "evaluators": ["exact-match"], "gate": {"absolute": {"exact-match.exact": gate}}}
    )
    [telling] = telling_of(spec, rows_there)
    assert telling.assumed == "yes/no marks"
    chance, told = random.Random(7), 0
    for _ in range(200):
        wealth = Wealth(gate, above=True)
        for _ in range(rows_there):
            wealth.take(float(chance.random() < gate + telling.gap))
        told += wealth.sure(alpha_of_round(0.95, 0))
    assert 0.8 <= told / 200 <= 1.0
    assert telling.rows_for_half == pytest.approx(4 * rows_there, rel=0.01)


def test_graded_marks_and_parity_have_their_own_words() -> None:
    spec = MigrationSpec.model_validate({**SPEC, "gate": {**SPEC["gate"], "parity": {"margin": 3}}})
    graded, parity = telling_of(spec, 200)
    assert graded.assumed == f"marks that spread by {100 * GRADED_SPREAD:g}"
    assert graded.gap == pytest.approx(7.3, abs=0.1)
    assert parity.unit == "points"
    assert (
        "parity: so few test rows cannot tell a margin of 3 points; 7.3 would do"
        in planned(gate={"parity": {"margin": 3}}).notes
    )


def test_a_gpu_by_its_line() -> None:
    assert gpu_of("NVIDIA H100 80GB HBM3, 81559") == Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024)
    assert gpu_of("NVIDIA GH200, [N/A]") == Gpu("NVIDIA GH200")


def test_a_first_try_fits_the_machine() -> None:
    assert first_try(SMALL).hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert first_try(Machine(8, 32)).hub_id == "HuggingFaceTB/SmolLM2-360M-Instruct"
    assert first_try(Machine(8, 32, (Gpu("x", 80.0),))).hub_id == "Qwen/Qwen3-4B-Instruct-2507"
    assert first_try(Machine(8, 32, (Gpu("x"),))) is FIRST_TRIES[0]
    for machine in (SMALL, Machine(4, 16), Machine(16, 32), Machine(32, 64), Machine(8, 32, (Gpu("x", 80.0),))):
        assert planned(machine, base_model=first_try(machine).hub_id).memory.fits


def test_estimates_are_not_shown_finer_than_they_are() -> None:
    assert [figure(number) for number in (0.0666, 5, 47, 664, 1274, 98765)] == [
        "0.067", "5", "47", "660", "1,300", "99,000",
    ]  # fmt: skip


def test_the_page_is_a_page() -> None:
    text = page(planned(gate={"absolute": {"llm-judge.similarity": 70}, "parity": {"margin": 3}}))
    assert len(text.splitlines()) < 45
    assert max(map(len, text.splitlines())) <= 140
    assert len(key_lines(planned())) == 3


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv(NATS_VARIABLE, "nats://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


@pytest.mark.usefixtures("elsewhere")
def test_plan_needs_no_bus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, rows=100))
    assert call(["plan", path]) == 0
    assert "no bus is at hand: whether anybody runs exact-match, llm-judge was not checked" in capsys.readouterr().out
    assert call(["plan", path, "--json"]) == 0
    assert Plan.model_validate_json(capsys.readouterr().out).rows["test"] == 50
    assert call(["plan", str(tmp_path / "no.yaml")]) == 2


@pytest.mark.usefixtures("elsewhere")
def test_the_readmes_five_lines_pass_and_say_what_they_cannot_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    lines = (root / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 5
    (tmp_path / "migration.yaml").write_text(lines)
    (tmp_path / "tickets.jsonl").write_bytes((root / "examples" / "support-triage" / "tickets.jsonl").read_bytes())
    assert call(["migrate", str(tmp_path / "migration.yaml"), "--check"]) == 0
    said = capsys.readouterr().err
    assert "165 test rows are few for a margin of 3" in said
    assert "cannot tell a margin of 3 points" in said


def test_a_gate_of_ones_own_evaluator_alone_is_planned_too() -> None:
    own = planned(evaluators=["mine"], gate={"absolute": {"mine.good": 5}}, budgets={"rounds": 1})
    text = page(own)
    assert "depends on the scale of your own evaluator" in text
    assert "mine: of evaluators of your own neither cost nor scale is known here" in text
    assert "all 1 rounds" not in text


@pytest.mark.usefixtures("elsewhere")
def test_check_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, rows=100))
    assert call(["migrate", path, "--check"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("m-") and said.out.count("\n") == 1
    assert "what 50 test rows can tell" in said.err
    assert call(["migrate", path, "--check", "--json"]) == 0
    assert Plan.model_validate(json.loads(capsys.readouterr().out)["plan"]).name == "support-triage"


@pytest.mark.usefixtures("elsewhere")
def test_migrate_says_three_lines_and_goes_on_where_nobody_can_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["migrate", str(write(tmp_path, rows=100))]) == 1
    error = capsys.readouterr().err
    assert sum(line.startswith("plan: ") for line in error.splitlines()) == 3
    assert "no bus answers" in error


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("typed", "options", "says"), [
    ("n\n", [], "nothing was submitted"),
    ("y\n", [], "no bus answers"),
    ("", ["--yes"], "no bus answers"),
])  # fmt: skip
def test_in_a_terminal_it_asks_once(tmp_path: Path, typed: str, options: list[str], says: str) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'shared'}{os.pathsep}{root}"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llamaduo.cli.main", "migrate", str(write(tmp_path, rows=100)), *options]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        os.write(ours, typed.encode())
        _, error = child.communicate(timeout=60)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode() if typed else ""
    os.close(ours)
    assert child.returncode == 1
    assert says in error
    assert shown.count("submit it?") == (1 if typed else 0)
