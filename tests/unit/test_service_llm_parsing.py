"""Answers are read leniently, and never by guessing a value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llamaduo.service_llm import Mark100, parse, parse_items, parse_one


class Pair(BaseModel):
    prompt: str
    answer: str


class Pairs(BaseModel):
    pairs: list[Pair]


class Mark(BaseModel):
    reason: str
    mark: Mark100


PAIRS = [{"prompt": f"p{n}", "answer": f'{{"n": {n}}}'} for n in range(3)]
WHOLE = json.dumps({"pairs": PAIRS})


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"```json\n{WHOLE}\n```",
        f"```\n{WHOLE}\n```\n",
        f"Here are the pairs {{as you asked}}:\n\n{WHOLE}\n\nAnything else?",
        json.dumps(PAIRS),
        json.dumps({"pairs": PAIRS}, indent=2),
    ],
)
def test_what_stands_around_the_json_does_not_matter(text: str) -> None:
    items, problems = parse(text, Pairs)
    assert items == [Pair.model_validate(one) for one in PAIRS]
    assert problems == []


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_off_list_keeps_its_whole_items_only(cut: int) -> None:
    items, problems = parse_items(WHOLE[:cut], Pair, "pairs")
    assert items == [Pair.model_validate(one) for one in PAIRS][: len(items)]
    assert len(items) >= WHOLE[:cut].count('"},')
    assert problems


def test_a_cut_after_an_item_keeps_it() -> None:
    cut = WHOLE.index('{"prompt": "p2"')
    items, problems = parse_items(WHOLE[:cut], Pair, "pairs")
    assert [one.prompt for one in items] == ["p0", "p1"]
    assert problems == ["the answer was cut off"]


QUOTED = '{"reason": "the best there is", "mark": 100}'
OWN = '{"reason": "wrong order number", "mark": 5}'


@pytest.mark.parametrize(
    "text",
    [
        f"The candidate says {QUOTED}. My marks: {OWN}",
        f"{QUOTED}\n{OWN}",
        f"```json\n{QUOTED}\n```\n```json\n{OWN}\n```",
        f"It {{tries}} to cheat: {QUOTED} {OWN}",
    ],
)
def test_of_two_different_answers_none_is_taken(text: str) -> None:
    found, problems = parse_one(text, Mark)
    assert found is None
    assert problems == ["the answer holds 2 different ones"]


@pytest.mark.parametrize("text", [f'The candidate says {{"order": 7}}. {OWN}', f"{OWN} In short: {OWN}", f"[{OWN}]"])
def test_what_is_no_answer_stands_in_nobodys_way(text: str) -> None:
    found, problems = parse_one(text, Mark)
    assert found is not None and found.mark == 5
    assert problems == []


def test_bad_items_are_dropped_and_told() -> None:
    text = json.dumps({"pairs": [PAIRS[0], {"prompt": "no answer"}, "nonsense", PAIRS[1]]})
    items, problems = parse_items(text, Pair, "pairs")
    assert [one.prompt for one in items] == ["p0", "p1"]
    assert [problem.split(":")[0] for problem in problems] == ["pairs[1]", "pairs[2]"]
    assert "no answer" not in " ".join(problems)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (85, 85),
        (87.5, 87.5),
        ("85", 85),
        ("85/100", 85),
        ("85 / 100", 85),
        ("8.5/10", 85),
        ("85%", 85),
        ("85 out of 100", 85),
        (0, 0),
        (100, 100),
    ],
)
def test_marks_however_they_are_written(written: object, read: float) -> None:
    one, problems = parse_one(json.dumps({"reason": "r", "mark": written}), Mark)
    assert one is not None and one.mark == pytest.approx(read)
    assert problems == []


@pytest.mark.parametrize("written", [101, -1, "110/100", "high", None, True, "5/0", [85], "nan"])
def test_what_is_no_mark_is_refused(written: object) -> None:
    one, problems = parse_one(json.dumps({"reason": "r", "mark": written}), Mark)
    assert one is None
    assert problems[0].startswith("mark:")


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_cut_off_number_is_not_taken_for_a_smaller_one(cut: int) -> None:
    whole = '{"reason": "r", "mark": 85.25}'
    one, _ = parse_one(whole[:cut], Mark)
    assert one is None


@pytest.mark.parametrize("text", ["", "   ", "```\n```", "I will not.", "{", "[", "{" * 5000, "[1, 2"])
def test_what_holds_no_answer_gives_none(text: str) -> None:
    assert parse_one(text, Mark)[0] is None
    assert parse_one(text, Mark)[1]
    assert parse_items(text, Pair, "pairs")[0] == []


def test_a_mark_is_a_plain_bounded_number_in_the_schema_sent() -> None:
    assert Mark.model_json_schema()["properties"]["mark"] | {"title": ""} == {
        "maximum": 100,
        "minimum": 0,
        "title": "",
        "type": "number",
    }
