"""The door: each of these broken specs and datasets is one line with file, line and key, and exit code 2."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from llamaduo.cli.main import call
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE
from tests.unit.test_cli_submission import GOOD, write


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state of the developer's, no bus, and a key."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setenv(NATS_VARIABLE, "nats://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command says, without the program's name."""
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().split("\n")
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("llamaduo: ")
    return lines[0].removeprefix("llamaduo: ")


GATE = "exact-match.exact: 0.7"
SPECS: list[tuple[str, str, str]] = [
    # (text in the good spec, what stands there instead, what is said after `migration.yaml:`)
    # --- the gate
    ("exact-match.exact:", "exact-match.exakt:",
     "11: gate.absolute.exact-match.exakt: exact-match gives no metric 'exakt' (did you mean 'exact-match.exact'?)"),
    (GATE, "exact-match.exact: 85",
     "11: gate.absolute.exact-match.exact: 85 is off the scale 0 to 1 (did you mean 0.85?)"),
    (GATE, "exact-match.exact: -1", "11: gate.absolute.exact-match.exact: -1 is off the scale 0 to 1"),
    ("role: advisory}\ngate:\n  absolute: {exact-match.exact: 0.7}",
     "role: required}\ngate:\n  absolute: {llm-judge.similarity: 0.8}",
     "11: gate.absolute.llm-judge.similarity: 0.8 on the scale 0 to 100 would pass nearly anything "
     "(did you mean 80?)"),
    (GATE, "exact-mach.exact: 0.7",
     "11: gate.absolute.exact-mach.exact: exact-mach is not a required evaluator (did you mean "
     "'exact-match.exact'? Or list it under `evaluators`, where there is exact-match, llm-judge)"),
    (GATE, "llm-judge.similarity: 60",
     "11: gate.absolute.llm-judge.similarity: llm-judge is not a required evaluator, and only those decide "
     "(take `role` away from it)"),
    (GATE, "exact: 0.7", "11: gate.absolute.exact: is not `evaluator.metric` (e.g. exact-match.exact)"),
    (GATE, "exact-match.exact: yes",
     "11: gate.absolute.exact-match.exact: must be a number, not true (yes, on and true are one value in YAML)"),
    ("absolute: {exact-match.exact: 0.7}", "parity: 3",
     "11: gate.parity: must be a mapping of keys, not 3 (did you mean {margin: 3}?)"),
    ("absolute: {exact-match.exact: 0.7}", GATE,
     "11: gate.exact-match.exact: unknown key (did you mean absolute: {exact-match.exact: …}?)"),
    (f"absolute: {{{GATE}}}", f"absolute: {{{GATE}}}\n  serving: {{latency_p95_s: 2, requests: 50}}",
     "12: gate.serving.requests: 50 requests with 8 in flight cannot tell that (at least 59)"),
    (f"absolute: {{{GATE}}}", f"absolute: {{{GATE}}}\n  serving: {{latency: 2}}",
     "12: gate.serving.latency: unknown key (did you mean 'latency_p95_s'?)"),
    # --- keys that stand twice, and YAML that is none
    ("recipe:\n  steps: 80", "recipe:\n  steps: 80\n  steps: 90",
     "14: steps: this key stands twice, first in line 13"),
    ("  - exact-match\n", "  - &e exact-match\nname: other\n", "10: not YAML: mapping values are not allowed here"),
    ("name: support-triage", "task: 2024-13-45\nname: a\nname: b", "3: name: this key stands twice, first in line 2"),
    ("steps: 80", "steps: 0x_", "13: not YAML: this is neither a number nor text: put it in quotes"),
    ("name: support-triage", f"name: {'[' * 3000}{']' * 3000}", "1: nested more than 32 deep"),
    ("name: support-triage", "name: support\0triage", "1: not YAML: the character U+0000 cannot stand in it"),
    ("steps: 80", "steps: !!int 80",
     "13: the YAML tag tag:yaml.org,2002:int has no meaning in a spec"),
    ("name: support-triage", "name: support-triage\n1: x", "2: a key must be text (put it in quotes)"),
    (GOOD, "", "1: is empty (docs/spec.md begins with one of five lines)"),
    # --- numbers that cannot work
    ("recipe:", "splits: {test: 3}\nrecipe:",
     "12: splits.test: 3 rows asked for, at least 8 are needed (0 is the default)"),
    ("recipe:", "splits:\n  train: 36\nrecipe:",
     "12: splits: asks for 46 rows (train 36 + validation 2 + test 8), the dataset has 40 different ones "
     "(add rows or ask for smaller splits)"),
    ("recipe:", "seed: 4294967296\nrecipe:", "12: seed: must be at most 4294967295, not 4294967296"),
    ("steps: 80", "steps: yes",
     "13: recipe.steps: must be a whole number, not true (yes, on and true are one value in YAML)"),
    ("recipe:", "generation: {answers: 16}\nmarking: {shard_rows: 100}\nrecipe:",
     "13: marking.shard_rows: 100 rows of 16 answers are more than the 1000 of a shard (at most 62)"),
    ("steps: 80", "steps: many", "13: recipe.steps: must be a whole number, not 'many'"),
    ("steps: 80", "steps: 0", "13: recipe.steps: must be at least 1, not 0"),
    ("steps: 80", "dropout: 1", "13: recipe.dropout: must be below 1, not 1"),
    ("recipe:\n  steps: 80", "recipe:",
     "12: recipe: has no value (leave the key out, or give it keys of its own)"),
    ("steps: 80", "quantization: nf-4",
     "13: recipe.quantization: must be 'none' or 'nf4', not 'nf-4' (did you mean 'nf4'?)"),
    ("steps: 80", "epochs: 3", "13: recipe.epochs: unknown key (did you mean 'steps'?)"),
    ("recipe:\n  steps: 80", "tool_wording: template\nrecipe:\n  preference: {}",
     "14: recipe.preference: reads answers with calls in words only (take `tool_wording` away)"),
    # --- the service LLM
    ("openai:gpt-x", "opnai:gpt-4o", "5: service_llm.model: there is no provider 'opnai' (did you mean 'openai'?)"),
    ("openai:gpt-x", "groq:llama-4",
     "5: service_llm.model: the provider 'groq' needs a package that is not installed "
     "(pip install 'pydantic-ai-slim[groq]')"),
    ("openai:gpt-x", "anthropic:claude-x\n  batch: true",
     "6: service_llm.batch: anthropic is not asked in batches, only openai and servers that speak its protocol are "
     "(leave batch out)"),
    ("openai:gpt-x", "openai:gpt-x\n  batch: half",
     "6: service_llm.batch: must be a mapping of keys, not 'half' (it has the keys wait_hours, price_factor)"),
    ("openai:gpt-x", "openai:gpt-x\n  batch: {wait_hours: 100}",
     "6: service_llm.batch.wait_hours: must be at most 24, not 100"),
    ("openai:gpt-x", "openai:gpt-x\n  base_url: localhost:8000",
     "6: service_llm.base_url: must begin with http:// or https:// (did you mean http://… before it?)"),
    ("  model: openai:gpt-x\n", "  model: gpt-4o\n",
     "5: service_llm.model: 'gpt-4o' is not `provider:model` (did you mean 'openai:gpt-4o'?)"),
    ("\n  model: openai:gpt-x\n  api_key_env: OPENAI_API_KEY", " gpt-4o",
     "4: service_llm: 'gpt-4o' is not `provider:model` (did you mean 'openai:gpt-4o'?)"),
    ("\n  model: openai:gpt-x\n  api_key_env: OPENAI_API_KEY", " openai/gpt-4o",
     "4: service_llm: 'openai/gpt-4o' is not `provider:model` (did you mean 'openai:gpt-4o'?)"),
    ("OPENAI_API_KEY", "sk-abcdef",
     "6: service_llm.api_key_env: must be the name of an environment variable, and never the key itself "
     "(e.g. OPENAI_API_KEY)"),
    ("OPENAI_API_KEY", "TEAM_KEY",
     "6: service_llm.api_key_env: the environment variable TEAM_KEY is not set "
     "(export TEAM_KEY=… before `llamaduo up` and this command)"),
    # --- names, evaluators, model
    ("name: support-triage", "name: Tri Age",
     "1: name: 'Tri Age' is no name: lower-case letters, digits and dashes, a letter first, at most 41 "
     "(did you mean 'tri-age'?)"),
    ("name: support-triage", "name: 7", "1: name: must be text, not 7 (put it in quotes)"),
    ("  - exact-match\n", "  - llm-judge\n", "9: evaluators.1: llm-judge is named twice"),
    ("role: advisory", "role: advisery",
     "9: evaluators.1.role: must be 'required', 'advisory' or 'veto', not 'advisery' (did you mean 'advisory'?)"),
    ("evaluators:\n  - exact-match\n  - {name: llm-judge, role: advisory}", "evaluators: exact-match",
     "7: evaluators: must be a list, not 'exact-match' (did you mean [exact-match]?)"),
    ("owner/model", "gpt2",
     "3: base_model: 'gpt2' is no folder, no .gguf file and no Hub id "
     "(a Hub id has an owner, e.g. HuggingFaceTB/SmolLM2-135M-Instruct)"),
    ("owner/model", "./modle", "3: base_model: no such model file or folder (did you mean 'model'?)"),
    ("owner/model", "./model",
     "3: base_model: {folder}/model: no config.json here, so this is no model folder"),
    # --- several base models
    ("base_model: owner/model\n", "", "1: base_model: this key is missing"),
    ("base_model: owner/model", "base_models: []", "3: base_models: must name at least 1"),
    ("base_model: owner/model", "base_models: owner/model",
     "3: base_models: must be a list, not 'owner/model' (did you mean [owner/model]?)"),
    ("base_model: owner/model", "base_model: owner/model\nbase_models: [owner/a]",
     "4: base_models: stands beside base_model (one of the two, not both)"),
    ("base_model: owner/model", "base_models: [owner/a, owner/b, owner/a]",
     "3: base_models.2: owner/a is named twice"),
    ("base_model: owner/model", "base_models:\n  - owner/a\n  - gpt2",
     "5: base_models.1: 'gpt2' is no folder, no .gguf file and no Hub id "
     "(a Hub id has an owner, e.g. HuggingFaceTB/SmolLM2-135M-Instruct)"),
    ("base_model: owner/model", "base_models:\n  - owner/a\n  - ./modle",
     "5: base_models.1: no such model file or folder (did you mean 'model'?)"),
    ("base_model: owner/model", "base_models: [owner/m-1.7B, owner/unknown, owner/m-135M]",
     "3: base_models.2: owner/m-135M (135M weights) stands after owner/m-1.7B (1,700M) "
     "(smallest first: the smallest that passes wins)"),
    ("base_model: owner/model", "base_modles: [owner/a]",
     "3: base_modles: unknown key (did you mean 'base_models'?)"),
    # --- the way to the dataset
    ("tickets.jsonl", "ticket.jsonl", "2: coverage: ticket.jsonl: no such file (did you mean 'tickets.jsonl'?)"),
    ("tickets.jsonl", "no/tickets.jsonl",
     "2: coverage: no/tickets.jsonl: no such file (there is no folder {folder}/no)"),
    ("tickets.jsonl", "model", "2: coverage: model: is a folder, not a file"),
    ("tickets.jsonl", '""', "2: coverage: names no file"),
    ("tickets.jsonl", "https://host/tickets.jsonl",
     "2: coverage: must be a file on this machine, or hf://owner/name (fetch it first)"),
    ("tickets.jsonl", "hf://tickets",
     "2: coverage: 'hf://tickets' is no dataset (hf://owner/name[@revision][:config][/split])"),
    ("tickets.jsonl", "tickets.jsonl\ncolumns: {promt: question}",
     "3: columns.promt: must be 'messages', 'prompt', 'response', 'completion', 'system', 'tools' or "
     "'response_format', not 'promt' (did you mean 'prompt'?)"),
]  # fmt: skip


@pytest.mark.parametrize(("there", "instead", "line"), SPECS)
def test_a_broken_spec_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    there: str,
    instead: str,
    line: str,
) -> None:
    assert there in GOOD
    monkeypatch.setitem(sys.modules, "pydantic_ai.providers.groq", None)  # whatever is installed here
    (tmp_path / "model").mkdir()
    path = write(tmp_path, GOOD.replace(there, instead, 1))
    assert said(["migrate", str(path)], capsys) == f"{path}:{line.replace('{folder}', str(tmp_path))}"


def user(text: object = "x") -> dict[str, object]:
    return {"role": "user", "content": text}


def bot(text: object = "y") -> dict[str, object]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}
TURNS = "user and assistant take turns"
SHAPE = "a row needs `messages`, or `prompt` and `response`"
ROWS: list[tuple[object, str]] = [
    # (a row, or a line as it stands; what is said after `rows.jsonl:3: `)
    ("{not json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ("{'prompt': 'x', 'response': 'y'}",
     "not JSON: Expecting property name enclosed in double quotes at column 2 (JSON wants double quotes)"),
    ('{"prompt": "a", "prompt": "b", "response": "c"}', "prompt: this key stands twice in one object"),
    ('{"prompt": "a", "response": "c", "x": {"y": 1, "y": 2}}', "y: this key stands twice in one object"),
    ('{"prompt": "a", "response": "c", "x": NaN}', "NaN is no JSON"),
    ('{"prompt": "a\\ud800", "response": "c"}', "holds half a character (a lone surrogate, \\ud800 to \\udfff)"),
    ("[" * 100_000, "not JSON that can be read: nested too deeply"),
    ('"text"', "a row is a JSON object, not 'text'"),
    (["a", "list"], "a row is a JSON object, not a list"),
    ({"prompt": "p"}, f"{SHAPE}; it has `prompt`"),
    ({"promt": "p", "reponse": "r"},
     f"{SHAPE}; it has `promt`, `reponse` (did you mean `prompt` for `promt` and `response` for `reponse`?)"),
    ({"instruction": "p", "output": "r"},
     f"{SHAPE}; it has `instruction`, `output` "
     "(did you mean `prompt` for `instruction` and `response` for `output`?)"),
    ({}, SHAPE),
    ({"prompt": "p", "response": ""}, "response: is empty"),
    ({"prompt": "p", "response": None}, "response: has no value"),
    ({"prompt": " \n", "response": "r"}, "prompt: is blank"),
    ({"prompt": 3, "response": "r"}, "prompt: must be text, not 3"),
    ({"prompt": "p", "response": "r", "system": ["s"]}, "system: must be text, not a list"),
    ({"prompt": "p", "response": "r", "system": []}, "system: must be text, not a list"),
    ({"messages": "hi"}, "messages: must be a list of messages, not 'hi'"),
    ({"messages": [user()]}, "messages: needs at least a user message and the assistant's answer"),
    ({"messages": [user(), "hi"]}, "messages[1]: must be an object with `role` and `content`, not 'hi'"),
    ({"messages": [{"role": "human", "content": "x"}, bot()]},
     "messages[0].role: must be system, user, assistant or tool, not 'human' (did you mean 'user'?)"),
    ({"messages": [user(), {"role": "assistent", "content": "x"}]},
     "messages[1].role: must be system, user, assistant or tool, not 'assistent' (did you mean 'assistant'?)"),
    ({"messages": [{"role": "user", "contents": "x"}, bot()]},
     "messages[0].contents: unknown key (did you mean 'content'?)"),
    ({"messages": [{"role": "user"}, bot()]}, "messages[0].content: is missing"),
    ({"messages": [user(["x"]), bot()]}, "messages[0].content: must be text, not a list"),
    ({"messages": [user(), bot("  ")]}, "messages[1].content: is blank"),
    ({"messages": [bot(), user(), bot()]},
     "messages[0].role: the assistant cannot begin: a user message must come before"),
    ({"messages": [SYSTEM, bot()]},
     "messages[1].role: the assistant cannot begin: a user message must come before"),
    ({"messages": [user(), SYSTEM, bot()]}, "messages[1].role: a system message can only be the first"),
    ({"messages": [user(), user(), bot()]}, f"messages[1].role: two user messages in a row: {TURNS}"),
    ({"messages": [user(), bot(), bot()]}, f"messages[2].role: two assistant messages in a row: {TURNS}"),
    ({"messages": [user(), bot(), user()]},
     "messages[2].role: the last message must be the assistant's answer"),
]  # fmt: skip
GOOD_ROWS = [json.dumps({"prompt": f"question {i}", "response": f"answer {i}"}) for i in range(20)]


@pytest.mark.parametrize(("row", "why"), ROWS)
def test_a_broken_row_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: object, why: str) -> None:
    file = tmp_path / "rows.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    file.write_text("\n".join([*GOOD_ROWS[:2], line, *GOOD_ROWS[2:]]))
    assert said(["data", "inspect", str(file)], capsys) == f"{file}:3: {why}"


KINDS = "UTF-8 text is read (JSON lines, JSON, CSV), and Parquet"
FILES: list[tuple[bytes, str]] = [
    (b"\n[\n  {\"prompt\": \"p\"}]", f":3: {SHAPE}; it has `prompt`"),
    (b'[{"prompt": "p", "response": "r"},\n\n {"prompt": ]', ":3: not JSON: Expecting value at column 13"),
    (b'[{"prompt": "p", "response": "r"}\n {"prompt": 1}]', ":2: not JSON: a comma or ] is missing"),
    (b'[{"prompt": "p", "response": "r"},\n {"prompt": "a", "prompt": "b"}]',
     ":2: prompt: this key stands twice in one object"),
    (b"[" * 100_000, ":1: not JSON that can be read: nested too deeply"),
    (b'{\n "prompt": "p"\n}', ":1: has objects that span several lines, not one a line (jq -c . FILE > rows.jsonl)"),
    (b"prompt,response\na,b\nc\n", ":3: has 1 cells, the header 2 (text with a comma stands in quotes)"),
    (b"prompt,response\na,b\n,d\n", ":3: prompt: is empty"),
    (b'prompt,response\n"a\nb",c\nd,"e" f\n',
     ":4: is no CSV: ',' expected after '\"' (a quote within quotes is written twice)"),
    (b"prompt,response\na,b\n\xe9,d\n",
     ":3: prompt: is not UTF-8 text (byte 0xe9) (iconv -f LATIN1 -t UTF-8, if it is Latin-1)"),
    (b"prompt,prompt,response\na,b,c\n", ":1: two columns are called 'prompt'"),
    (b"not json, at all", ":1: not JSON: Expecting value at column 1"),
    ("\n".join(GOOD_ROWS).encode("utf-16"), f": is UTF-16 text ({KINDS})"),
    ("\n".join(GOOD_ROWS).encode("utf-16-le"), f": is UTF-16 text ({KINDS})"),
    (gzip.compress(b"{}", mtime=0), f": is compressed (gzip) ({KINDS})"),
    ("\n".join([GOOD_ROWS[0], '{"prompt": "é", "response": "r"}']).encode("latin-1"),
     ":2: is not UTF-8 text (byte 0xe9) (iconv -f LATIN1 -t UTF-8, if it is Latin-1)"),
    (b"", ": holds no rows"),
    ("\n".join([GOOD_ROWS[0], *["{}"] * 30]).encode(),
     f":2: {SHAPE}; 30 lines are bad, also 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, …"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "why"), FILES)
def test_a_file_of_another_kind_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes, why: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(body)
    assert said(["data", "inspect", str(file)], capsys) == f"{file}{why}"


def test_a_byte_order_mark_is_no_mistake_and_own_columns_stay(tmp_path: Path) -> None:
    from llamaduo.coverage_files import read_coverage

    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"id": 7, "prompt": "p", "response": "r", "team": "a"}\n')
    assert [row.meta for row in read_coverage(file)] == [{"id": 7, "team": "a"}]


def test_a_date_is_text(tmp_path: Path) -> None:
    assert call(["migrate", str(write(tmp_path, GOOD + "task: 2024-13-45\n")), "--check"]) == 0


def test_a_spec_that_leads_back_to_itself_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD + "splits: &s {train: *s}\n")
    assert said(["migrate", str(path)], capsys).startswith(f"{path}:14: splits.train: ")


def test_a_spec_in_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    path.write_bytes((GOOD + "task: é\n").encode("latin-1"))
    assert said(["migrate", str(path)], capsys) == f"{path}:14: is not UTF-8 text (byte 0xe9) (save it as UTF-8)"
    path.write_bytes(GOOD.encode("utf-16"))
    assert said(["migrate", str(path)], capsys) == f"{path}: is UTF-16 text (save it as UTF-8)"
    near = said(["migrate", str(tmp_path / "migraton.yaml")], capsys)
    assert near == f"{tmp_path}/migraton.yaml: no such file (did you mean 'migration.yaml'?)"
