"""`data inspect` counts what it says it counts; `merge` gives one file whatever the order and however often."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.cli.data_facts import (
    facts_of,
    label_shares,
    near_copies,
    token_counter,
    what_a_test_tells,
)
from llamaduo.cli.main import call
from llamaduo.datasets import Message, Row, dump_rows, load_rows, make_row, merge_rows
from llamaduo.errors import UserInputError


def row(prompt: str, answer: str = "r", **more: Any) -> Row:
    return make_row([Message(role="user", content=prompt), Message(role="assistant", content=answer)], **more)


# --- merge

ROWS = st.builds(
    row,
    st.sampled_from(["a", "b", "c"]),
    source=st.sampled_from(["coverage", "generated"]),
    meta=st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 2)),
)
SETS = st.lists(ROWS, max_size=6)


@settings(max_examples=150, deadline=None)
@given(SETS, SETS, SETS)
def test_merging_is_idempotent_commutative_and_associative(a: list[Row], b: list[Row], c: list[Row]) -> None:
    merged = merge_rows(a, b, c)
    assert merge_rows(merged) == merge_rows(merged, a, merged) == merged
    assert merge_rows(c, b, a) == merge_rows(b, a, c) == merged
    assert merge_rows(merge_rows(a, b), c) == merge_rows(a, merge_rows(b, c)) == merged
    assert {one.id for one in merged} == {one.id for one in [*a, *b, *c]}


def test_a_row_of_ones_own_wins() -> None:
    own, generated = row("p", meta={"z": 1}), row("p", source="generated")
    assert merge_rows([generated], [own]) == [own]


def test_merge_writes_one_file_that_merging_leaves_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, out = tmp_path / "a.jsonl", tmp_path / "b.csv", tmp_path / "out.jsonl"
    first.write_bytes(dump_rows([row("p", source="generated"), row("q", meta={"team": "a"})]))
    second.write_text("prompt,response\np,r\ns,r\n")
    assert call(["merge", str(out), str(first), str(second)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 rows, 3 of them your own\n"
    body = out.read_bytes()
    assert load_rows(body) == merge_rows([row("p"), row("q", meta={"team": "a"}), row("s")])
    assert call(["merge", str(out), str(second), str(out), str(first), str(first)]) == 0
    assert out.read_bytes() == body
    assert out.stat().st_mode == first.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.csv", "out.jsonl"]


def test_merge_refuses_bad_lines_and_leaves_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    bad.write_text('{"prompt": "p", "response": "r"}\n{}\n')
    out.write_text("old")
    assert call(["merge", str(out), str(bad)]) == 2
    assert out.read_text() == "old"
    assert call(["merge", str(out), str(bad), "--skip-bad"]) == 0
    assert f"skipped: {bad}:2: " in capsys.readouterr().err
    assert load_rows(out.read_bytes()) == [row("p")]


# --- inspect


def test_lengths_are_estimated_and_said_to_be() -> None:
    facts = facts_of([row("x" * 8, "y" * 5), row("x" * 40, "y")], 0, 0, token_counter(None))
    assert facts["tokens are"] == "estimated, 4 characters each"
    assert (facts["prompt, longest"], facts["answer, longest"], facts["row, longest"]) == (10, 2, 11)
    assert facts["prompt, median tokens"] == 6


def test_lengths_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "small"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    counter = token_counter(folder)
    assert (counter.count("a b c, a"), counter.by) == (5, "by small")


def test_a_tokenizer_that_cannot_count_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserInputError, match=r"--base-model: no tokenizer\.json here"):
        token_counter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserInputError, match="is no tokenizer that can be read"):
        token_counter(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserInputError, match=r"pip install 'llamaduo\[data\]'"):
        token_counter(tmp_path)


def test_near_copies_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "Where is my parcel today?",
        "where is my parcel, today",
        "Where is my parcel to-day",
        "Cancel it",
        "Cancel me",
    ]
    assert near_copies(texts) == 2
    assert near_copies([f"{number} different" for number in ("one", "two", "three")]) == 0
    assert near_copies(["again and again " * 100] * 6000) == "1999 of 2000 compared"
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    assert near_copies(texts) == "not counted (pip install 'llamaduo[data]')"


def test_labels_are_listed_with_their_shares() -> None:
    assert label_shares(["yes"] * 6 + ["no"] * 2 + ["so"] * 2) == {
        "yes": "60.0% (6)",
        "no": "20.0% (2)",
        "so": "20.0% (2)",
    }
    many = [f"label {number:02}" for number in range(12) for _ in range(3 + (number == 0))]
    assert next(iter(label_shares(many).items())) == ("label 00", "10.8% (4)")
    assert list(label_shares(many).items())[-1] == ("… 2 others, the rarest 3 times", "16.2% (6)")
    assert label_shares([str(number) for number in range(9)]) == {}
    assert label_shares(["x" * 100] * 9) == {}


def test_what_a_test_split_tells() -> None:
    assert what_a_test_tells(200) == "200 prompts: ±7 points at one look; the verdict tells 17 points from the gate"
    assert what_a_test_tells(16).startswith("16 prompts: ±24 points")  # ±18 for a share of 0.83; half is the worst
    assert what_a_test_tells(3) == "nothing: too few rows to split"


def test_inspect_prints_labels_with_their_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    lines = [f"question number {number},{'yes' if number % 4 else 'no'}" for number in range(40)]
    file.write_text("\n".join(["question,response", *lines]))
    assert call(["data", "inspect", str(file), "--column", "prompt=question"]) == 0
    printed = capsys.readouterr().out
    assert "answers are labels\n  75.0% (30)             yes\n  25.0% (10)             no\n" in printed
    assert "20 prompts: ±22 points" in printed
    assert call(["data", "inspect", str(file), "--column", "promt=question"]) == 2
    assert capsys.readouterr().err == "llamaduo: --column: 'promt' is no column of ours (did you mean 'prompt'?)\n"


def test_inspect_as_json_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"prompt": f"p{number}", "response": "é"} for number in range(20)]))
    assert call(["data", "inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers are labels"] == {"é": "100.0% (20)"}
