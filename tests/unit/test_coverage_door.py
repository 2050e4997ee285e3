"""A coverage dataset at the door: what is refused, what may be skipped, and that its kind of file does not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


FORM = {"type": "json_object"}
RESULT: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "find", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "x"},
    {"role": "assistant", "content": "a"},
]


@pytest.mark.usefixtures("elsewhere")
def test_rows_with_tools_pass_the_door(tmp_path: Path) -> None:
    spec = write(tmp_path)
    with (tmp_path / "tickets.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "p", "response": "r", "tools": [TOOL]}) + "\n")
        file.write(json.dumps({"messages": RESULT, "tools": [TOOL]}) + "\n")
    assert call(["migrate", str(spec), "--check"]) == 0


@pytest.mark.usefixtures("elsewhere")
def test_tools_that_cannot_be_learnt_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write(tmp_path)
    file = tmp_path / "tickets.jsonl"
    plain = file.read_text()
    file.write_text(plain + json.dumps({"prompt": "p", "response": "r", "tools": [TOOL], "response_format": FORM}))
    assert call(["migrate", str(spec), "--check"]) == 2
    assert capsys.readouterr().err == (
        f"llamaduo: {spec}:2: coverage: 1 of 41 rows have both tools and a response format, which cannot be learnt "
        "(take `response_format` out of those rows)\n"
    )
    turns = [[{**RESULT[0], "content": f"question {n}"}, *RESULT[1:]] for n in range(40)]
    file.write_text("".join(json.dumps({"messages": one, "tools": [TOOL]}) + "\n" for one in turns))
    assert call(["migrate", str(spec), "--check"]) == 2
    assert "every row goes on after a tool has answered" in capsys.readouterr().err


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


async def test_past_the_door_they_are_refused_too(tmp_path: Path) -> None:
    store = ObjectStoreArtifacts(tmp_path.as_uri())
    plain = [Message(role="user", content="p"), Message(role="assistant", content="r")]
    rows = [make_row(plain, tools=[TOOL], response_format=FORM)]
    event = MigrationRequested(
        migration="m",
        spec=parse_spec(GOOD, "migration.yaml").spec.model_dump(mode="json"),
        coverage=await put_bytes(store, dump_rows(rows), "application/x-ndjson"),
    )
    with pytest.raises(PermanentError, match="both tools and a response format"):
        await first_round(event, store)
