"""The demo's coverage dataset: distinct, balanced, answered right, and the committed file is just that."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz

from services.emulator.__main__ import main
from services.emulator.corpus import Row, make_corpus
from services.emulator.grammar import INTENTS, SYSTEM_PROMPT, URGENCIES
from services.emulator.likeness import is_near_copy, likeness
from services.emulator.teacher import understand

ROOT = Path(__file__).resolve().parents[2]
ROWS, SEED = 330, 7


@pytest.fixture(scope="module")
def corpus() -> list[Row]:
    return make_corpus(ROWS, SEED)


def test_no_two_rows_are_near_copies(corpus: list[Row]) -> None:
    prompts = [row["messages"][1]["content"] for row in corpus]
    assert len(prompts) == ROWS
    assert max(fuzz.ratio(one, other) for one, other in itertools.combinations(prompts, 2)) < 90


def test_rows_are_chat_rows_answered_by_the_teacher(corpus: list[Row]) -> None:
    for row in corpus:
        system, user, assistant = row["messages"]
        assert system == {"role": "system", "content": SYSTEM_PROMPT}
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert assistant["content"] == understand(user["content"]).as_json()


def test_intents_and_urgencies_are_balanced(corpus: list[Row]) -> None:
    records = [json.loads(row["messages"][2]["content"]) for row in corpus]
    intents = Counter(record["intent"] for record in records)
    urgencies = Counter(record["urgency"] for record in records)
    assert set(intents) == set(INTENTS) and max(intents.values()) - min(intents.values()) <= 1
    assert set(urgencies) == set(URGENCIES) and min(urgencies.values()) >= ROWS // 4


def test_the_committed_file_is_this_corpus(corpus: list[Row]) -> None:
    lines = (ROOT / "examples/support-triage/tickets.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == corpus


def test_the_command_writes_the_rows_as_json_lines(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert main(["corpus", "--rows", "12", "--seed", "1", "--out", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == make_corpus(12, 1)


def test_another_seed_gives_other_rows() -> None:
    assert make_corpus(20, 1) == make_corpus(20, 1) != make_corpus(20, 2)


def test_a_grammar_too_narrow_for_the_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.emulator.corpus.NEAR_COPY", 20.0)
    with pytest.raises(ValueError, match="ask for fewer"):
        make_corpus(50, 1)


@given(st.text(max_size=120), st.text(max_size=120))
def test_likeness_is_rapidfuzz_ratio(left: str, right: str) -> None:
    assert likeness(left, right) == pytest.approx(fuzz.ratio(left, right))
    assert is_near_copy(left, [right], 90.0) == (fuzz.ratio(left, right) >= 90.0)
