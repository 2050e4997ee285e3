"""The command line from outside: exit codes, one line per mistake, help, and what needs no bus."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import typer

from llamaduo.cli.main import call
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE
from tests.unit.test_cli_submission import GOOD, write


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state of the developer's, and a bus that nobody runs."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv(NATS_VARIABLE, "nats://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr("llamaduo.cli.doctor.unreachable", lambda url: "not asked in a test")


def test_a_mistake_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace("recipe:", "recipie:"))
    assert call(["migrate", str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [f"llamaduo: {path}:12: recipie: unknown key (did you mean 'recipe'?)"]


def test_check_needs_no_bus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["migrate", str(write(tmp_path)), "--check", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 40
    assert said["new"] is None


def test_the_secret_is_never_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(["migrate", str(write(tmp_path)), "--check"])
    call(["doctor"])
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate", "SPEC"],
        ["watch"],
        ["status"],
        ["report"],
        ["events"],
        ["chat"],
        ["pause", "m-1"],
        ["resume", "m-1"],
        ["cancel", "m-1"],
        ["promote", "m-1"],
        ["rollback", "m-1"],
        ["dlq", "list"],
        ["dlq", "show", "x"],
        ["dlq", "replay", "x"],
        ["dlq", "drop", "x"],
        ["evaluator", "add", "mine"],
        ["evaluator", "list"],
        ["evaluator", "remove", "mine"],
        ["bootstrap"],
    ],
)
def test_without_a_bus_each_command_says_what_to_do(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(write(tmp_path))
    assert call([spec if a == "SPEC" else a for a in arguments]) == 1
    error = capsys.readouterr().err
    assert "no bus answers at nats://127.0.0.1:1" in error
    assert "`llamaduo up`" in error
    assert "Traceback" not in error


def test_unknown_options_are_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["migrate", "--wach"]) == 2
    assert call(["no-such-command"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_file_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["migrate", str(tmp_path / "none.yaml")]) == 2
    assert call(["data", "inspect", str(tmp_path / "none.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "none.yaml" in error
    assert "none.jsonl" in error


def test_data_inspect_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "p", "response": "r"})
    other = json.dumps({"prompt": "p", "response": "other"})
    file.write_text(f"{row}\n{row}\n{other}\n")
    assert call(["data", "inspect", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == 2
    assert facts["exact repeats dropped"] == 1
    assert facts["prompts answered twice"] == 1
    assert facts["answer, longest"] == 2  # five characters, at four a token


@pytest.mark.parametrize("what", ["spec", "report", "events"])
def test_schemas_are_json(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["schema", what]) == 0
    assert json.loads(capsys.readouterr().out)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("llamaduo demo", "llamaduo up", "llamaduo migrate", "doctor", "evaluator", "dlq", "Steer"):
        assert word in text


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from llamaduo.cli.main import app

    def names(of: typer.Typer) -> list[str]:
        return [info.name or info.callback.__name__ for info in of.registered_commands if info.callback]

    below = [
        [str(group.name), *name]
        for group in app.registered_groups
        if group.typer_instance is not None
        for name in ([], *([one] for one in names(group.typer_instance)))
    ]
    for command in [*([one] for one in names(app)), *below]:
        assert call([*command, "--help"]) == 0
        assert len(capsys.readouterr().out) > 200


def test_importing_the_command_line_is_light() -> None:
    script = (
        "import sys, llamaduo.cli.main\n"
        "from llamaduo.cli import system, submission, watching, doctor, side_by_side\n"
        "heavy = {'torch', 'transformers', 'vllm', 'trl', 'peft', 'datasets', 'faststream'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def write_file(folder: Path) -> Path:
    """A file where a folder is wanted."""
    file = folder / "afile"
    file.write_text("")
    return file


@pytest.mark.parametrize("arguments", [["up", "-d"], ["status"], ["down"], ["doctor"], ["migrate", "x.yaml"]])
def test_a_file_for_a_state_folder_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path)
    monkeypatch.setenv(STATE_VARIABLE, str(file))
    assert call(arguments) == 2
    assert capsys.readouterr().err == (
        f"llamaduo: {file}: the state folder cannot be here: a file is in the way "
        "(name a folder with --state or LLAMADUO_STATE_DIR)\n"
    )


def test_a_state_folder_that_cannot_be_made_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(STATE_VARIABLE, "/proc/x")
    assert call(["up", "-d"]) == 2
    assert capsys.readouterr().err == "llamaduo: /proc/x: no such file or folder\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--html", "."], ".: is a folder, not a file"),
        (["--out", "AFILE"], "AFILE: a file is in the way where a folder is needed"),
        (["--html", "/proc/x.html"], "/proc/x.html: no such file or folder"),
    ],
)
def test_a_report_that_cannot_be_written_is_one_line(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llamaduo.migrations.fold import fold
    from tests.unit.synthetic_log import complete_log

    class OneBus:
        async def artifacts(self) -> None:
            return None

    @contextlib.asynccontextmanager
    async def the_bus() -> AsyncIterator[OneBus]:
        yield OneBus()

    async def all_views(_: OneBus) -> dict[str, object]:
        return {"m": fold(complete_log())}

    async def gather(*_: object) -> list[object]:
        return []

    monkeypatch.setattr("llamaduo.cli.connect.the_bus", the_bus)
    monkeypatch.setattr("llamaduo.cli.connect.all_views", all_views)
    monkeypatch.setattr("llamaduo.cli.side_by_side.gather", gather)
    file = str(write_file(tmp_path))
    assert call(["report", *(file if a == "AFILE" else a for a in arguments)]) == 2
    assert capsys.readouterr().err == f"llamaduo: {says.replace('AFILE', file)}\n"


def test_a_wrong_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamaduo.artifacts import ObjectStoreArtifacts
    from llamaduo.errors import UserInputError
    from llamaduo.settings import BusSettings, read_settings

    monkeypatch.setenv("LLAMADUO_PROFILE", "zzz")
    with pytest.raises(UserInputError) as caught:
        read_settings(BusSettings)
    assert str(caught.value) == "LLAMADUO_PROFILE: must be 'default' or 'faults', not 'zzz'"
    for url in ("foo://x", "file:///proc/x", "nonsense"):
        with pytest.raises(UserInputError) as caught:
            ObjectStoreArtifacts(url)
        assert caught.value.field == "LLAMADUO_ARTIFACTS_URL"
        assert "\n" not in str(caught.value)


def test_an_evaluator_without_a_bus_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "same_length_evaluator.py"
    assert call(["evaluator", "run", f"{example}:same_length"]) == 1
    assert "no bus answers at nats://127.0.0.1:1" in capsys.readouterr().err


def test_down_without_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["down"]) == 0
    assert "nothing runs" in capsys.readouterr().out


def test_an_unknown_service_cannot_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["up", "--without", "trainr"]) == 2
    assert "there are synthesizer, trainer" in capsys.readouterr().err
