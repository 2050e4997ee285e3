"""`llamaduo init`: what it finds in the rows of a dataset, and that what it writes is a spec that passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaduo.built_in_evaluators import ALWAYS_RUN, METRICS
from llamaduo.cli.main import call
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE
from llamaduo.coverage_files import read_coverage
from llamaduo.migrations.best_case import fewest_rows, parity_gate
from llamaduo.migrations.resolution import alpha_of_round
from llamaduo.planning.draft import CHOICES, absolute_gate, draft_spec, parity_margin, steps_for
from llamaduo.planning.machine import Gpu, Machine
from llamaduo.planning.task_shape import TaskShape, shape_of

TICKETS = Path(__file__).parents[2] / "examples" / "support-triage" / "tickets.jsonl"
SMALL = Machine(2, 23.5)
WORDS = ("amber", "brook", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jewel", "knoll")


def text(number: int) -> str:
    picked = [WORDS[(number * step + step) % len(WORDS)] for step in (1, 2, 3, 5, 7, 8, 9)]
    return f"Case {number}: the {' '.join(picked)} was discussed at length."


SHAPES: dict[str, Callable[[int], str]] = {
    "labels": lambda i: ("refund", "exchange", "Damage report")[i % 3],
    "json": lambda i: json.dumps({"intent": WORDS[i % 5], "order": f"F{i}", "urgent": i % 2 == 0}),
    "prose": lambda i: json.dumps({"summary": text(i), "score": i}),
    "tools": lambda i: json.dumps({"name": "look_up", "arguments": {"order": f"F{i}"}}),
    "tool-calls": lambda i: json.dumps(
        {"tool_calls": [{"function": {"name": "find", "arguments": f'{{"q": {i}}}'}}]}
    ),
    "text": text,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv(NATS_VARIABLE, "nats://127.0.0.1:1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("llamaduo.planning.machine.this_machine", lambda: SMALL)


def dataset(folder: Path, answer: Callable[[int], str], number: int = 60) -> Path:
    lines = [json.dumps({"prompt": f"question {text(i)}", "response": answer(i)}) for i in range(number)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def shape(folder: Path, answer: Callable[[int], str], number: int = 60) -> TaskShape:
    return shape_of(read_coverage(dataset(folder, answer, number)))


def made(folder: Path, data: Path, *options: str) -> dict[str, Any]:
    """What `init` writes beside the data, having passed `migrate --check`."""
    out = folder / "migration.yaml"
    assert call(["init", str(data), "--out", str(out), *options]) == 0
    assert call(["migrate", str(out), "--check"]) == 0
    found = yaml.safe_load(out.read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("labels", "labels"), ("json", "json"), ("tools", "tools"), ("tool-calls", "tools"), ("text", "text")],
)
def test_shapes_are_told_apart(tmp_path: Path, name: str, kind: str) -> None:
    assert shape(tmp_path, SHAPES[name]).kind == kind


def test_what_a_shape_says(tmp_path: Path) -> None:
    assert set(shape(tmp_path, SHAPES["labels"]).labels) == {"refund", "exchange", "Damage report"}
    assert shape(tmp_path, SHAPES["json"]).keys == ("intent", "order", "urgent")
    assert shape(tmp_path, SHAPES["prose"]) == TaskShape("json", keys=("summary", "score"), prose=("summary",))
    assert shape_of(read_coverage(TICKETS)) == TaskShape("json", keys=("intent", "product", "order", "urgency"))


def test_a_slip_or_two_do_not_change_the_shape(tmp_path: Path) -> None:
    assert shape(tmp_path, lambda i: "I am not sure what this is about" if i == 7 else "yes").kind == "labels"
    assert shape(tmp_path, lambda i: "no idea" if i == 7 else SHAPES["json"](i)).kind == "json"
    assert shape(tmp_path, lambda i: f"```json\n{SHAPES['json'](i)}\n```").kind == "json"


def test_short_answers_that_hardly_repeat_are_no_labels(tmp_path: Path) -> None:
    assert shape(tmp_path, lambda i: f"F{i // 2}").kind == "text"


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("number", [14, 25, 60, 450])
def test_the_spec_passes_its_check(tmp_path: Path, name: str, number: int) -> None:
    spec = made(tmp_path, dataset(tmp_path, SHAPES[name], number))
    assert spec["coverage"] == "rows.jsonl"
    assert spec["name"] == "rows"
    judged, calls = name in ("text", "prose"), name in ("tools", "tool-calls")
    assert spec["evaluators"] == ["llm-judge" if judged else "tool-call" if calls else "exact-match"]
    assert ("parity" in spec["gate"]) is judged
    assert spec["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_demos_tickets(tmp_path: Path) -> None:
    spec = made(tmp_path, TICKETS, "--name", "support-triage", "--service-llm", "openai:gpt-4o-mini")
    assert spec["evaluators"] == ["exact-match"]
    assert spec["gate"] == {"absolute": {"exact-match.exact": 0.8}}
    assert spec["splits"] == {"validation": 33, "test": 165, "holdout": 33}
    assert spec["service_llm"] == "openai:gpt-4o-mini"
    assert (tmp_path / spec["coverage"]).resolve() == TICKETS


def test_a_spec_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path, SHAPES["labels"])
    out = tmp_path / "migration.yaml"
    out.write_text("mine")
    assert call(["init", str(data), "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "is there already (--force" in capsys.readouterr().err
    assert call(["init", str(data), "--out", str(out), "--force"]) == 0
    assert out.read_text() != "mine"


def test_the_dataset_is_never_written_over(tmp_path: Path) -> None:
    data = dataset(tmp_path, SHAPES["labels"])
    before = data.read_bytes()
    assert call(["init", str(data), "--out", str(data), "--force"]) == 2
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--service-llm", "gpt-4o"], "did you mean 'openai:gpt-4o'?"),
        (["--name", "Support Triage"], "did you mean 'support-triage'?"),
        (["--service-llm", "opnai:gpt-4o"], "llamaduo: service_llm: there is no provider 'opnai' (did you mean"),
        (["--base-model", "nosuch"], "llamaduo: base_model: 'nosuch' is no folder"),
    ],
)
def test_options_that_are_none_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    out = tmp_path / "migration.yaml"
    assert call(["init", str(dataset(tmp_path, SHAPES["labels"])), "--out", str(out), *options]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_too_few_rows_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path, SHAPES["labels"], 13)
    assert call(["init", str(data), "--out", str(tmp_path / "migration.yaml")]) == 2
    assert capsys.readouterr().err == f"llamaduo: {data}: 13 different rows are too few: 14 are needed (add rows)\n"


def test_rows_that_cannot_be_learnt_give_no_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    data, out = tmp_path / "rows.jsonl", tmp_path / "migration.yaml"
    row = {"response": "r", "tools": [tool], "response_format": {"type": "json_object"}}
    data.write_text("\n".join(json.dumps({"prompt": text(i), **row}) for i in range(20)))
    assert call(["init", str(data), "--out", str(out)]) == 2
    assert "coverage: 20 of 20 rows have both tools and a response format" in capsys.readouterr().err
    assert not out.exists()


def test_columns_of_other_names_stand_in_the_spec(tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("Question,Antwort\n" + "".join(f"{text(i)},{'yes' if i % 2 else 'no'}\n" for i in range(40)))
    spec = made(tmp_path, data, "--column", "prompt=Question", "--column", "response=Antwort")
    assert spec["columns"] == {"prompt": "Question", "response": "Antwort"}


def test_bad_lines_are_skipped_by_wish_by_init_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = dataset(tmp_path, SHAPES["labels"]), str(tmp_path / "migration.yaml")
    data.write_text(data.read_text() + "{oops\n")
    assert call(["init", str(data), "--out", out]) == 2
    assert call(["init", str(data), "--out", out, "--skip-bad"]) == 0
    assert call(["plan", out]) == 2
    capsys.readouterr()
    assert call(["plan", out, "--skip-bad"]) == 0
    said = capsys.readouterr()
    assert "1 bad lines were skipped, 60 rows are left" in said.err
    assert "30 test" in said.out


def test_a_dataset_of_the_hub_stands_as_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path, SHAPES["labels"])
    monkeypatch.setattr("llamaduo.coverage_files.fetched", lambda address: [data])
    out = tmp_path / "migration.yaml"
    assert call(["init", "hf://owner/My_Tickets@v1", "--out", str(out)]) == 0
    spec = yaml.safe_load(out.read_text())
    assert (spec["coverage"], spec["name"]) == ("hf://owner/My_Tickets@v1", "my-tickets")


def test_names_and_labels_cannot_break_the_file(tmp_path: Path) -> None:
    odd = dataset(tmp_path, lambda i: ("yes\x07: [", "no # {", "a\u2028gate: 1")[i % 3])
    data = odd.rename(tmp_path / '2024 Täglich: "x" #1.jsonl')
    spec = made(tmp_path, data)
    assert spec["coverage"] == data.name
    assert spec["name"] == "t-glich-x-1"


def test_whoever_decides_runs_on_every_bus_or_says_how() -> None:
    for choice in CHOICES.values():
        assert choice.evaluator in ALWAYS_RUN or f"llamaduo up --evaluator {choice.evaluator}" in choice.also
        assert choice.metric in METRICS[choice.evaluator]
        assert choice.also.rpartition(" ")[2] in METRICS


@pytest.mark.parametrize("test", [8, 12, 30, 60, 100, 200, 500])
def test_a_gate_is_in_reach_and_grows_with_the_rows(test: int) -> None:
    gate, first = absolute_gate(test), alpha_of_round(0.95, 0)
    assert (fewest_rows(gate, first) or 10**9) <= test
    assert absolute_gate(2 * test) >= gate
    margin = parity_margin(test)
    assert parity_margin(2 * test) <= margin
    if test >= 30:
        assert (fewest_rows(parity_gate(margin), first, mark=0.5) or 10**9) <= test


def test_gates_for_some_sizes() -> None:
    assert [absolute_gate(test) for test in (60, 100, 200, 500)] == [0.65, 0.75, 0.85, 0.9]
    assert [parity_margin(test) for test in (60, 100, 200, 1000)] == [15, 15, 8, 5]


def test_steps_follow_rows_and_machine() -> None:
    assert steps_for(30, SMALL) == 80
    assert steps_for(600, SMALL) == 300
    assert steps_for(10_000, SMALL) == 400
    assert steps_for(10_000, Machine(8, 64, (Gpu("x", 80.0),))) == 2000


def test_another_base_model_stands_as_it_was_given(tmp_path: Path) -> None:
    rows = read_coverage(dataset(tmp_path, SHAPES["text"]))
    spec = yaml.safe_load(draft_spec(rows, name="x", coverage="x", machine=SMALL, base_models=["owner/other"]))
    assert spec["base_model"] == "owner/other"


def test_several_base_models_become_a_list_that_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = tmp_path / "migration.yaml", dataset(tmp_path, SHAPES["labels"])
    several = ["--base-model", "owner/small-135M", "--base-model", "owner/large-1.7B"]
    assert call(["init", str(data), "--out", str(out), *several]) == 0
    assert yaml.safe_load(out.read_text())["base_models"] == ["owner/small-135M", "owner/large-1.7B"]
    capsys.readouterr()
    assert call(["init", str(data), "--out", str(out), "--force", *several[2:], *several[:2]]) == 2
    assert "base_models.1: owner/small-135M (135M weights) stands after" in capsys.readouterr().err
