"""A coverage dataset at the door: what is refused, what may be skipped, and that its kind of file does not matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaduo.artifacts import ObjectStoreArtifacts, put_bytes
from llamaduo.cli.main import call
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE
from llamaduo.datasets import Message, dump_rows, make_row
from llamaduo.errors import PermanentError
from llamaduo.events import MigrationRequested
from llamaduo.migrations.spec_file import parse_spec
from services.synthesizer.app import first_round
from tests.unit.test_cli_submission import GOOD, write

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv(NATS_VARIABLE, "nats://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


@pytest.mark.usefixtures("elsewhere")
def test_skip_bad_lists_each_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path)
    file = tmp_path / "tickets.jsonl"
    sound = call(["migrate", str(spec), "--check", "--json"]), capsys.readouterr().out
    file.write_text("{}\n" + file.read_text() + "{not json\n")
    for command in (["migrate", str(spec), "--check"], ["data", "inspect", str(file)]):
        assert call([*command, "--json"]) == 2
        capsys.readouterr()
        assert call([*command, "--skip-bad", "--json"]) == 0
        captured = capsys.readouterr()
        listed = [line for line in captured.err.splitlines() if not line.startswith("note")]
        assert listed == [
            f"skipped: {file}:1: a row needs `messages`, or `prompt` and `response`",
            f"skipped: {file}:42: not JSON: Expecting property name enclosed in double quotes at column 2",
            "2 bad lines were skipped, 40 rows are left",
        ]
        assert json.loads(captured.out)["rows"] == 40
    assert sound[0] == 0
    call(["migrate", str(spec), "--check", "--skip-bad", "--json"])
    assert json.loads(capsys.readouterr().out) == {**json.loads(sound[1]), "skipped": 2}


@pytest.mark.usefixtures("elsewhere")
def test_where_all_is_bad_there_is_nothing_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n{}\n")
    assert call(["data", "inspect", str(file), "--skip-bad"]) == 2
    assert capsys.readouterr().err == f"llamaduo: {file}: holds no rows (all lines are bad)\n"


@pytest.mark.usefixtures("elsewhere")
def test_rows_with_tools_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path)
    with (tmp_path / "tickets.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "p", "response": "r", "tools": [TOOL]}) + "\n")
    assert call(["migrate", str(spec), "--check"]) == 2
    assert capsys.readouterr().err == (
        f"llamaduo: {spec}:2: coverage: 1 of 41 rows offer or call tools, which cannot be learnt yet "
        "(take those rows out, or what they have of `tools`)\n"
    )


@pytest.mark.usefixtures("elsewhere")
def test_the_same_rows_in_another_kind_of_file_are_the_same_migration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write(tmp_path)
    call(["migrate", str(spec), "--check"])
    lines = ["question;reply", *(f"question {i};answer {i}" for i in range(40))]
    (tmp_path / "tickets.csv").write_text("\n".join(lines))
    mapped = "coverage: tickets.csv\ncolumns: {prompt: question, response: reply}"
    spec.write_text(GOOD.replace("coverage: tickets.jsonl", mapped))
    call(["migrate", str(spec), "--check"])
    first, second = capsys.readouterr().out.split()
    assert first == second


async def test_past_the_door_rows_with_tools_are_refused_too(tmp_path: Path) -> None:
    store = ObjectStoreArtifacts(tmp_path.as_uri())
    plain = [Message(role="user", content="p"), Message(role="assistant", content="r")]
    rows = [make_row(plain, tools=[TOOL])]
    event = MigrationRequested(
        migration="m",
        spec=parse_spec(GOOD, "migration.yaml").spec.model_dump(mode="json"),
        coverage=await put_bytes(store, dump_rows(rows), "application/x-ndjson"),
    )
    with pytest.raises(PermanentError, match="offers or calls tools"):
        await first_round(event, store)
