"""What `migrate` refuses before anything starts, where it says the mistake is, and what ids depend on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaduo.cli.spec_checks import EvaluatorOnBus, check_evaluators
from llamaduo.cli.submission import Overrides, prepare
from llamaduo.errors import UserInputError

GOOD = """\
name: support-triage
coverage: tickets.jsonl
base_model: owner/model
service_llm:
  model: openai:gpt-x
  api_key_env: OPENAI_API_KEY
evaluators:
  - exact-match
  - {name: llm-judge, role: advisory}
gate:
  absolute: {exact-match.exact: 0.7}
recipe:
  steps: 80
"""
KEYS = {"OPENAI_API_KEY": "secret"}


def write(folder: Path, spec: str = GOOD, rows: int = 40) -> Path:
    """A spec and its dataset on disk."""
    lines = [json.dumps({"prompt": f"question {i}", "response": f"answer {i}"}) for i in range(rows)]
    (folder / "tickets.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "migration.yaml"
    path.write_text(spec)
    return path


def refused(path: Path, environment: dict[str, str] | None = None, **options: Any) -> UserInputError:
    with pytest.raises(UserInputError) as caught:
        prepare(path, environment=KEYS if environment is None else environment, **options)
    return caught.value


def test_a_sound_spec_passes(tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path), environment=KEYS)
    assert prepared.migration.startswith("m-")
    assert len(prepared.migration) == 18
    assert len(prepared.rows) == 40
    assert prepared.notes == [
        "owner/model is not on this machine: it will be fetched",
        "exact-match.exact: 20 test rows are few for 0.7: to pass in round 0 a model must get 20 of them right; "
        "in round 4 not even all would do (25 rows would)",
    ]


def test_more_requests_than_test_rows_are_a_note(tmp_path: Path) -> None:
    serving = "  absolute: {exact-match.exact: 0.7}\n  serving: {latency_p95_s: 2}"
    spec = GOOD.replace("  absolute: {exact-match.exact: 0.7}", serving)
    note = "gate.serving: 100 requests over 20 test prompts ask some of them more than once"
    assert note in prepare(write(tmp_path, spec), environment=KEYS).notes
    assert note not in prepare(write(tmp_path, spec, rows=200), environment=KEYS).notes


MISTAKES: list[tuple[str, str, int | None, str | None, str]] = [
    # (text in the good spec, replacement, line, field, what the message must hold)
    ("recipe:", "recipie:", 12, "recipie", "did you mean 'recipe'?"),
    ("  steps: 80", "  step: 80", 13, "recipe.step", "did you mean 'steps'?"),
    ("  model: openai", "  modle: openai", 5, "service_llm.modle", "did you mean 'model'?"),
    ("service_llm:", "service-llm:", 4, "service-llm", "did you mean 'service_llm'?"),
    ("gate:\n  absolute:", "gate:\n  absolut:", 11, "gate.absolut", "did you mean 'absolute'?"),
    ("role: advisory", "rôle: advisory", 9, "evaluators.1.rôle", "did you mean 'role'?"),
    ("name: support-triage", "name: Support Triage", 1, "name", "is no name"),
    ("name: support-triage\n", "", 1, "name", "missing"),
    ("coverage: tickets.jsonl", "coverage: [tickets.jsonl]", 2, "coverage", "must be text"),
    ("  model: openai:gpt-x", "  model: gpt-x", 5, "service_llm.model", "is not `provider:model`"),
    ("OPENAI_API_KEY", "sk-abcdef", 6, "service_llm.api_key_env", "never the key itself"),
    ("steps: 80", "steps: many", 13, "recipe.steps", "whole number"),
    ("steps: 80", "steps: 0", 13, "recipe.steps", "at least 1"),
    ("exact-match.exact: 0.7", "exact: 0.7", 11, "gate.absolute.exact", "is not `evaluator.metric`"),
    (
        "exact-match.exact: 0.7",
        "llm-judge.similarity: 60",
        11,
        "gate.absolute.llm-judge.similarity",
        "not a required evaluator",
    ),
    ("exact-match.exact: 0.7", "", 10, "gate", "needs `absolute` thresholds or `parity`"),
    ("role: advisory", "role: optional", 9, "evaluators.1.role", "'required', 'advisory' or 'veto'"),
    ("  - exact-match\n", "  - llm-judge\n", 9, "evaluators.1", "named twice"),
    ("name: support-triage", "name: [unclosed", 2, None, "not YAML"),
    ("steps: 80", "steps: .nan", 13, "recipe.steps", "finite"),
    (GOOD, "- just\n- a list\n", 1, None, "mapping of keys"),
    ("tickets.jsonl", "ticket.jsonl", 2, "coverage", "no such file"),
    ("owner/model", "./no/such/folder", 3, "base_model", "no such model file or folder"),
    ("owner/model", "model.gguf", 3, "base_model", "no such model file or folder"),
    ("owner/model", "just-a-word", 3, "base_model", "no Hub id"),
]


@pytest.mark.parametrize(("there", "instead", "line", "field", "says"), MISTAKES)
def test_mistakes_are_named(
    tmp_path: Path, there: str, instead: str, line: int | None, field: str | None, says: str
) -> None:
    assert there in GOOD
    path = write(tmp_path, GOOD.replace(there, instead, 1))
    error = refused(path)
    assert says in str(error)
    assert error.field == field
    if line is not None:
        assert error.line == line
        assert f"migration.yaml:{line}:" in str(error)


def test_a_missing_key_is_named_without_its_value(tmp_path: Path) -> None:
    error = refused(write(tmp_path), environment={})
    assert error.field == "service_llm.api_key_env"
    assert "OPENAI_API_KEY" in str(error)


def test_services_that_were_started_without_the_key(tmp_path: Path) -> None:
    error = refused(write(tmp_path), key_names_of_services=["MISTRAL_API_KEY"])
    assert "`llamaduo up` was started without OPENAI_API_KEY" in str(error)


def test_services_that_have_the_key_are_enough(tmp_path: Path) -> None:
    assert prepare(write(tmp_path), environment={}, key_names_of_services=["OPENAI_API_KEY"]).rows


def test_a_server_of_ones_own_may_need_no_key(tmp_path: Path) -> None:
    overrides = Overrides(base_url="http://127.0.0.1:9/v1", api_key_env="MY_KEY")
    prepared = prepare(write(tmp_path), environment={}, overrides=overrides)
    assert any("MY_KEY is not set" in note for note in prepared.notes)
    assert prepared.spec.service_llm.base_url == "http://127.0.0.1:9/v1"


def test_a_wrong_override_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path), overrides=Overrides(model="gpt-x"))
    assert str(error) == "--service-llm: 'gpt-x' is not `provider:model` (did you mean 'openai:gpt-x'?)"


def test_a_misspelt_evaluator_is_not_made_to_last(tmp_path: Path) -> None:
    spec = GOOD.replace("exact-match", "exact-mach")
    prepared = prepare(write(tmp_path, spec), environment=KEYS)
    assert "evaluators: exact-mach is none of the built-in ones (did you mean 'exact-match'?)" in prepared.notes
    with pytest.raises(UserInputError, match=r"did you mean 'exact-match'\? A new one: llamaduo evaluator add"):
        check_evaluators(prepared.file, [EvaluatorOnBus("exact-match", True), EvaluatorOnBus("llm-judge", True)])


def test_a_key_in_a_file_counts(tmp_path: Path) -> None:
    path, file = write(tmp_path), tmp_path / "key"
    error = refused(path, {"OPENAI_API_KEY_FILE": str(file)})
    assert "cannot be read" in str(error)
    file.write_text("secret")
    assert prepare(path, environment={"OPENAI_API_KEY_FILE": str(file)}).rows
    assert prepare(path, environment={}, key_names_of_services=["OPENAI_API_KEY_FILE"]).rows


@pytest.mark.parametrize("variable", ["GOOGLE_API_KEY", "GEMINI_API_KEY"])
def test_the_file_of_a_providers_own_key_counts_where_its_service_would_read_it(
    tmp_path: Path, variable: str
) -> None:
    pytest.importorskip("google.genai")
    path, file = write(tmp_path, GOOD.replace("openai:gpt-x", "google:gemini-2.5-flash")), tmp_path / "key"
    file.write_text("secret")
    assert prepare(path, environment={f"{variable}_FILE": str(file)}).rows
    assert prepare(path, environment={}, key_names_of_services=[f"{variable}_FILE"]).rows
    assert "GOOGLE_API_KEY or GEMINI_API_KEY is not set" in str(refused(path, {"OPENAI_API_KEY_FILE": str(file)}))


def test_the_key_that_another_address_is_called_without_is_the_providers_own(tmp_path: Path) -> None:
    pytest.importorskip("anthropic")
    spec = GOOD.replace("openai:gpt-x", "anthropic:claude-x\n  base_url: http://127.0.0.1:9")
    notes = prepare(write(tmp_path, spec), environment={}).notes
    assert any("ANTHROPIC_API_KEY is not set; http://127.0.0.1:9 will be called without a key" in n for n in notes)


def test_a_check_needs_no_key_and_a_missing_one_hides_nothing(tmp_path: Path) -> None:
    prepared = prepare(write(tmp_path), environment={}, keys_needed=False)
    assert any("OPENAI_API_KEY is not set" in note for note in prepared.notes)
    assert "too few" in str(refused(write(tmp_path, rows=5), {}))


def test_another_providers_own_variable_holds_its_key(tmp_path: Path) -> None:
    plain = GOOD.replace("openai:gpt-x", "deepseek:deepseek-chat")
    path = write(tmp_path, plain)
    assert "DEEPSEEK_API_KEY is not set" in str(refused(path, {"OPENAI_API_KEY": "of another"}))
    assert prepare(path, environment={}, key_names_of_services=["DEEPSEEK_API_KEY"]).rows


def test_every_provider_at_the_door_is_one_of_pydantic_ai() -> None:
    from pydantic_ai.providers import infer_provider_class

    from llamaduo.service_llm.credentials import PROVIDER_KEYS

    for provider in PROVIDER_KEYS:
        with contextlib.suppress(ImportError):  # its package is not installed here, but it is known
            infer_provider_class(provider)


def test_too_few_rows(tmp_path: Path) -> None:
    assert "too few" in str(refused(write(tmp_path, rows=5)))


def test_more_rows_asked_for_than_there_are(tmp_path: Path) -> None:
    spec = GOOD + "splits: {train: 20, test: 50}\n"
    error = refused(write(tmp_path, spec))
    assert (error.field, error.line) == ("splits", 14)
    assert "asks for 72 rows (train 20 + validation 2 + test 50), the dataset has 40" in str(error)


def test_the_id_depends_on_spec_rows_and_submission_and_on_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, same = (prepare(write(tmp_path / name), environment=KEYS).migration for name in ("a", "b"))
    assert one == same
    again = prepare(write(tmp_path / "a"), environment=KEYS, number=2).migration
    other_rows = prepare(write(tmp_path / "a", rows=41), environment=KEYS).migration
    other_spec = prepare(write(tmp_path / "a", GOOD.replace("80", "81")), environment=KEYS).migration
    other_model = prepare(
        write(tmp_path / "a"), environment=KEYS, overrides=Overrides(model="openai:gpt-y")
    ).migration
    assert len({one, again, other_rows, other_spec, other_model}) == 5


def test_the_order_of_rows_does_not_change_the_id(tmp_path: Path) -> None:
    path = write(tmp_path)
    one = prepare(path, environment=KEYS).migration
    lines = (tmp_path / "tickets.jsonl").read_text().splitlines()
    (tmp_path / "tickets.jsonl").write_text("\n".join(reversed(lines)))
    assert prepare(path, environment=KEYS).migration == one


def test_evaluators_must_be_known_to_the_bus_if_they_decide(tmp_path: Path) -> None:
    spec = prepare(write(tmp_path), environment=KEYS).file
    with pytest.raises(UserInputError, match=r":8: evaluators\.0: .*llamaduo evaluator add exact-match"):
        check_evaluators(spec, [EvaluatorOnBus("llm-judge", True)])
    notes = check_evaluators(spec, [EvaluatorOnBus("exact-match", False)])
    assert len(notes) == 2
    assert "no process is running it" in notes[0]
    assert "will mark nothing" in notes[1]
    every = [EvaluatorOnBus("exact-match", True), EvaluatorOnBus("llm-judge", True)]
    assert check_evaluators(spec, every) == []


def test_the_example_of_the_demo_is_sound(tmp_path: Path) -> None:
    from llamaduo.cli.demo_command import KEY_VARIABLE, find_example, write_spec

    example = find_example()
    assert example is not None
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    path = write_spec(example, tmp_path, model=model, url="http://127.0.0.1:1/v1", seed=3)
    prepared = prepare(path, environment={KEY_VARIABLE: "k"})
    assert prepared.notes == []
    assert prepared.spec.seed == 3
    assert prepared.spec.base_model == str(model)
    assert yaml.safe_load(path.read_text())["service_llm"]["api_key_env"] == KEY_VARIABLE
