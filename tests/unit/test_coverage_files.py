"""Files of prompts and answers of every kind become the same rows; what cannot be a row is named."""

from __future__ import annotations

import copy
import datetime
import decimal
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from llamaduo.coverage_files import read_coverage, scan
from llamaduo.coverage_rows import BadRow, row_of
from llamaduo.datasets import Message, dataset_digest, dump_rows, load_rows, make_row
from llamaduo.errors import UserInputError
from llamaduo.hub_datasets import HubDataset, fetched, files_of, parse_address

SCHEMA = {"type": "json_schema", "json_schema": {"name": "triage", "schema": {"type": "object", "default": None}}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"b": 1, "a": "x"}'}}


def user(text: object = "p") -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: object = "r", **more: object) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


PLAIN = make_row([Message(role="user", content="p, q"), Message(role="assistant", content='say "r"\nand s')])
WITH_SYSTEM = make_row(
    [
        Message(role="system", content="Be é."),
        Message(role="user", content="p"),
        Message(role="assistant", content="r"),
    ],
    meta={"team": "a"},
)
TWO_LINES = (
    json.dumps({"prompt": "p, q", "response": 'say "r"\nand s'}),
    json.dumps({"system": "Be é.", "prompt": "p", "response": "r", "team": "a"}, ensure_ascii=False),
)
KINDS: dict[str, str] = {
    "rows.jsonl": "\n\n".join(TWO_LINES) + "\n",
    "crlf.jsonl": "\r\n".join(TWO_LINES),
    "array.json": f"[{TWO_LINES[0]} ,{TWO_LINES[1]}]",
    "pretty.json": "\ufeff" + json.dumps([json.loads(line) for line in TWO_LINES], indent=2),
    "comma.csv": 'prompt,response,system\n"p, q","say ""r""\nand s",\n',
    "tabs.tsv": "team\tsystem\tprompt\tcompletion\na\tBe é.\tp\tr\n",
    "semicolons.csv": "\ufeffprompt;response;system;team\r\np;r;Be é.;a\r\n",
    "named.txt": "prompt,response,system,team\np,r,Be é.,a\n",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(KINDS[name].encode())
    expected = {"comma.csv": [PLAIN]}.get(name, [PLAIN, WITH_SYSTEM] if "json" in name else [WITH_SYSTEM])
    assert read_coverage(file) == expected


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    file = tmp_path / "rows.any"
    columns = pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "response", "system", "team")])
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in TWO_LINES], schema=columns), file)
    plain, with_system = read_coverage(file)
    assert plain == PLAIN.model_copy(update={"meta": {"team": None}})
    assert with_system == WITH_SYSTEM


def test_parquet_columns_of_any_type_become_meta(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    file = tmp_path / "rows.parquet"
    row = {
        "messages": [{**user(), "weight": None}, bot(weight=1)],
        "day": datetime.date(2026, 1, 2),
        "price": decimal.Decimal("1.50"),
        "mark": float("nan"),
        "tools": json.dumps([TOOL]),
    }
    bad = {**row, "messages": [user()], "day": None}
    parquet.write_table(pyarrow.Table.from_pylist([row, bad]), file)
    found = scan(file)
    assert [r.meta for r in found.rows.values()] == [{"day": "2026-01-02", "price": "1.50", "mark": None}]
    assert [r.tools for r in found.rows.values()] == [[TOOL]]
    assert [(line.number, line.problem.key) for line in found.bad] == [(2, "messages")]


def test_bytes_and_broken_parquet_are_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": b"\xff", "response": "r"}]), file)
    assert str(scan(file).bad[0]) == f"{file}:1: prompt: holds bytes, not text"
    texts = pyarrow.array([b"p", b"\xff"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"prompt": texts, "response": ["r", "r"]}), file)
    with pytest.raises(UserInputError, match=r"is no Parquet file that can be read: .*utf-8"):
        scan(file)
    far = pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    parquet.write_table(pyarrow.table({"prompt": ["p"], "response": ["r"], "day": far}), file)
    with pytest.raises(UserInputError, match="is no Parquet file that can be read"):
        scan(file)
    twice = pyarrow.table([pyarrow.array(["p"])] * 3, names=["prompt", "response", "response"])
    parquet.write_table(twice, file)
    with pytest.raises(UserInputError, match="two columns are called 'response'"):
        scan(file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserInputError, match="is no Parquet file that can be read"):
        scan(file)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1....")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserInputError, match=r"pip install 'llamaduo\[data\]'"):
        scan(file)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserInputError, match=r"pip install 'llamaduo\[data\]'"):
        scan("hf://owner/name")


ANSWERED = {"choices": [{"message": bot(refusal=None, tool_calls=None), "finish_reason": "stop"}], "model": "gpt-x"}
ASKED = {"model": "gpt", "messages": [user()], "temperature": 1, "response_format": SCHEMA, "metadata": {"team": "a"}}
SHAPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # (an object, what the row has beside the messages p and r)
    ({"prompt": "p", "completion": "r", "id": 7}, {"meta": {"id": 7}}),
    ({"messages": [user(), bot()], "system": "mine"}, {"meta": {"system": "mine"}}),
    ({"messages": [user(), bot(weight=1)], "parallel_tool_calls": False}, {"meta": {"parallel_tool_calls": False}}),
    ({"messages": [user([{"type": "text", "text": "p"}]), bot(annotations=[], audio=None)]}, {}),
    ({"messages": json.dumps([user(), bot()]), "tools": "", "response_format": None}, {}),
    ({"prompt": "p", "response": "r", "response_format": json.dumps(SCHEMA)}, {"response_format": SCHEMA}),
    ({"prompt": "p", "response": "r", "response_format": {"type": "text"}, "tools": []}, {}),
    ({"messages": [user(), bot()], "tools": [TOOL]}, {"tools": [TOOL]}),
    ({"request": ASKED, "response": ANSWERED, "team": "b", "id": 1},
     {"response_format": SCHEMA, "meta": {"model": "gpt-x", "team": "b", "id": 1}}),
    ({"custom_id": "1", "request": {"url": "/v1", "body": ASKED}, "response": {"status_code": 200, "body": ANSWERED}},
     {"response_format": SCHEMA, "meta": {"model": "gpt-x", "team": "a", "custom_id": "1"}}),
    ({"object": "chat.completion", "id": "c-1", "usage": {}, **ASKED, **ANSWERED},
     {"response_format": SCHEMA, "meta": {"model": "gpt-x", "team": "a"}}),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "more"), SHAPES)
def test_a_shape_is_read(raw: dict[str, Any], more: dict[str, Any]) -> None:
    plain = [Message(role="user", content="p"), Message(role="assistant", content="r")]
    assert row_of(raw) == make_row(plain, **more)


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": [user(), bot(weight=0)]}, "messages[1].weight", "nothing to learn"),
    ({"messages": [user(), bot(weight=2)]}, "messages[1].weight", "must be 0 or 1"),
    ({"messages": [user(), bot(None, refusal="I cannot")]}, "messages[1].refusal", "refused"),
    ({"messages": [{**user(), "name": "Ann"}, bot()]}, "messages[0].name", "would not be passed on"),
    ({"messages": [user([{"type": "image_url", "image_url": {}}]), bot()]}, "messages[0].content[0]", "only text"),
    ({"messages": [user(), bot(None, function_call={"name": "f"})]}, "messages[1].function_call", "old form"),
    ({"messages": [user(), bot(), {"role": "tool", "content": "x", "tool_call_id": "1"}]},
     "messages[2].role", "must follow"),
    ({"messages": [user(), bot("", tool_calls=[CALL]), user(), bot()]}, "messages[2].role", "the assistant's turn"),
    ({"messages": [user(), {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id", "must name the call"),
    ({"messages": [user(), bot("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
     "messages[1].tool_calls[0].function.arguments", "must be a JSON object"),
    ({"messages": [user(), bot("", tool_calls=[{"name": "f"}])]}, "messages[1].tool_calls[0].function", "must hold"),
    ({"prompt": "p", "response": "r", "tools": {"name": "f"}}, "tools", "must be a list of tools"),
    ({"prompt": "p", "response": "r", "tools": [{"name": "f"}]}, "tools[0]", "is no tool"),
    ({"prompt": "p", "response": "r", "response_format": "json"}, "response_format", "must be an object"),
    ({"prompt": "p", "response": "r", "response_format": {"type": "object"}}, "response_format.type", "must be text"),
    ({"prompt": "p", "response": "r", "response_format": {"type": "json_schema"}}, "response_format.json_schema",
     "holds no `schema`"),
    ({"request": ASKED, "response": {"error": {"code": 429}}}, "response.error", "the call failed"),
    ({"request": ASKED, "response": {"choices": []}}, "response.choices", "holds no answer"),
    ({"request": {}, "response": ANSWERED}, "request.messages", "must be a list"),
    ({"request": ASKED, "response": {"choices": [{"message": bot(), "finish_reason": "length"}]}},
     "choices[0].finish_reason", "not whole"),
    ({"request": {**ASKED, "functions": [{}]}, "response": ANSWERED}, "request.functions", "old form"),
    (ANSWERED, None, "an answer without its prompt"),
    ({"input": {}, "preferred_output": []}, None, "pair of preferences"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "key", "why"), BAD)
def test_what_cannot_be_learnt_is_named(raw: dict[str, Any], key: str | None, why: str) -> None:
    with pytest.raises(BadRow, match=why) as caught:
        row_of(raw)
    assert caught.value.key == key


def test_tool_calls_and_their_answers_are_kept() -> None:
    answer = {"role": "tool", "tool_call_id": "c1", "name": "find", "content": ""}
    turns = [{"role": "developer", "content": "s"}, user(), bot(None, tool_calls=[CALL]), answer, bot(), user()]
    row = row_of({"messages": [*turns, bot("Let me see.", tool_calls=[CALL])], "tools": [TOOL]})
    assert [message.role for message in row.messages] == [
        "system", "user", "assistant", "tool", "assistant", "user", "assistant"
    ]  # fmt: skip
    assert row.messages[2].text == '{"tool_calls":[{"name":"find","arguments":{"a":"x","b":1}}]}'
    assert row.answer == f"Let me see.\n{row.messages[2].text}"
    assert row.needs_tools
    assert load_rows(dump_rows([row])) == [row]


JUNK: tuple[Any, ...] = (
    None,
    0,
    True,
    "",
    " ",
    "x",
    "[",
    [],
    {},
    [1],
    [{}],
    {"type": "text"},
    [[]],
    {"role": []},
    "\ud800",
    -1,
)


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, one in inside for way in [(*before, key), *places(one, (*before, key))]]


def test_whatever_stands_in_a_row_it_is_a_row_or_a_bad_one() -> None:
    turns = [user(), bot(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "x"}, bot()]
    whole = [
        {"messages": turns, "tools": [TOOL], "response_format": SCHEMA},
        {"request": ASKED, "response": ANSWERED},
    ]
    chance, rows = random.Random(5), 0
    for _ in range(2000):
        raw = copy.deepcopy(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 2))):
            *way, last = chance.choice(places(raw))
            inner: Any = raw
            for key in way:
                inner = inner[key]
            if chance.random() < 0.25:
                del inner[last]
            else:
                inner[last] = copy.deepcopy(chance.choice(JUNK))
        try:
            row = row_of(raw)
        except BadRow:
            continue
        rows += 1
        assert load_rows(dump_rows([row])) == [row]
        assert row_of(json.loads(dump_rows([row]))) == row
    assert 200 < rows < 1800


@pytest.mark.parametrize("levels", [99, 100, 300, 900, 5000])
@pytest.mark.parametrize("form", ["{}\n", "[{}]"])
def test_a_row_is_nested_so_deeply_that_it_can_be_kept_or_is_bad(tmp_path: Path, levels: int, form: str) -> None:
    file = tmp_path / "rows.json"
    deep = "[" * levels + "]" * levels
    file.write_text(form.replace("{}", f'{{"prompt": "p", "response": "r", "deep": {deep}}}'))
    try:
        found = scan(file)
    except UserInputError as error:
        assert levels == 5000
        assert "nested too deeply" in str(error)
        return
    assert load_rows(dump_rows(found.rows.values())) == list(found.rows.values())
    assert len(found.rows) == (levels < 100)
    assert all("nested too deeply" in str(line) for line in found.bad)


def test_deep_tools_in_a_cell_of_text_are_bad_too() -> None:
    with pytest.raises(BadRow, match="must be a list of tools"):
        row_of({"prompt": "p", "response": "r", "tools": "[" * 300 + "]" * 300})


def test_a_number_of_too_many_digits_is_the_fault_of_its_row_in_an_array_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(f'[{{"prompt": "p", "response": "r", "n": {"1" * 5000}}},\n{{"prompt": "q", "response": "r"}}]')
    found = scan(file)
    assert len(found.rows) == 1
    assert [(line.number, line.problem.why) for line in found.bad] == [
        (1, "not JSON that can be read: a number is too long")
    ]


def test_columns_of_other_names() -> None:
    raw = {"question": "p", "reply": "r", "prompt": "mine", "fmt": json.dumps(SCHEMA)}
    row = row_of(raw, {"prompt": "question", "response": "reply", "response_format": "fmt"})
    assert (row.user_text, row.answer, row.response_format, row.meta) == ("p", "r", SCHEMA, {"prompt": "mine"})
    with pytest.raises(BadRow) as caught:
        row_of({"question": "", "reply": "r"}, {"prompt": "question", "response": "reply"})
    assert caught.value.key == "question"
    with pytest.raises(BadRow, match="has no column 'qestion', where `prompt` should be") as caught:
        row_of({"question": "p", "response": "r"}, {"prompt": "qestion"})
    assert caught.value.hint == "did you mean 'question'?"


def test_ids_of_rows_without_tools_and_format_are_those_of_their_messages() -> None:
    messages = [Message(role="user", content="p"), Message(role="assistant", content="r")]
    plain, asked, tooled = (
        make_row(messages),
        make_row(messages, response_format=SCHEMA),
        make_row(messages, tools=[TOOL]),
    )
    assert plain.id == "c8d3679eac8cdab6470bc942"
    assert dataset_digest([plain]) == "c8722dd85fc986ea30712c021c673113d5e8080fefb6ed0f1195847154c9076e"
    assert len({plain.id, asked.id, tooled.id}) == 3
    assert dump_rows([plain]) == (
        b'{"id":"c8d3679eac8cdab6470bc942","messages":[{"content":"p","role":"user"},'
        b'{"content":"r","role":"assistant"}],"meta":{},"source":"coverage"}\n'
    )
    assert load_rows(dump_rows([asked, tooled])) == [asked, tooled]


def test_rows_that_were_written_by_us_come_back(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    mine = make_row(PLAIN.messages, response_format=SCHEMA, meta={"team": "a"})
    generated = make_row(WITH_SYSTEM.messages, source="generated")
    file.write_bytes(dump_rows([mine, generated]))
    found = scan(file)
    assert list(found.rows.values()) == [mine]
    assert [str(line) for line in found.bad] == [
        f"{file}:2: source: is a generated row: only your own can be tested on"
    ]
    assert list(scan(file, generated=True).rows.values()) == [mine, generated]


# --- the Hub


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("hf://o/n", HubDataset("o/n", None, None, "train")),
        ("hf://o/n.v2@refs:cfg/test", HubDataset("o/n.v2", "refs", "cfg", "test")),
        ("hf://o/n@abc", HubDataset("o/n", "abc", None, "train")),
        ("hf://o/n/validation", HubDataset("o/n", None, None, "validation")),
    ],
)
def test_an_address_is_read(address: str, named: HubDataset) -> None:
    assert parse_address(address) == named


@pytest.mark.parametrize("address", ["hf://name", "hf://o/n/a/b", "hf://o/../x", "hf://", "hf://o/n:"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserInputError, match="is no dataset"):
        parse_address(address)


def test_the_files_of_a_split_are_found() -> None:
    files = [
        "README.md", "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test.parquet",
        "train.jsonl", "training.jsonl", "de/train.csv", "de/.train.csv", "en/train/part.csv",
    ]  # fmt: skip
    named = {
        "hf://o/n": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        "hf://o/n/test": ["data/test.parquet"],
        "hf://o/n:de": ["de/train.csv"],
        "hf://o/n:en/train": ["en/train/part.csv"],
        "hf://o/n:fr": [],
    }
    assert {address: files_of(files, parse_address(address)) for address in named} == named


def test_fetched_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "train.jsonl").write_text(KINDS["rows.jsonl"])

    class Api:
        def list_repo_files(self, repo: str, *, repo_type: str, revision: str | None) -> list[str]:
            assert (repo, repo_type, revision) == ("o/n", "dataset", "v1")
            return ["README.md", "train.jsonl"]

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name, **_: str(tmp_path / name))
    assert read_coverage("hf://o/n@v1") == [PLAIN, WITH_SYSTEM]
    with pytest.raises(UserInputError, match=r"no file of the split 'test'; its files: train\.jsonl"):
        fetched("hf://o/n@v1/test")


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Unreachable(Exception):
        """As of the Hub client's HTTP library: of none of Python's own kinds."""

    class Api:
        def list_repo_files(self, *_: object, **__: object) -> list[str]:
            raise Unreachable("Name or service not known\nand more")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(UserInputError, match=r"^hf://o/n: could not be fetched: Name or service not known$"):
        fetched("hf://o/n")
