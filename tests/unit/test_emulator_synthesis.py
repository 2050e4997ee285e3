"""Synthesis answers: as many pairs as asked, right, new, diverse, and aimed at the examples' intents."""

from __future__ import annotations

import itertools
import json

import pytest
from pydantic import JsonValue
from rapidfuzz import fuzz

from services.emulator.answers import answer
from services.emulator.chat import ChatRequest
from services.emulator.corpus import make_corpus
from services.emulator.synthesis import MAX_PAIRS, intents_shown, messages_shown, pairs_wanted, write_pairs
from services.emulator.teacher import understand

PAIRS: dict[str, JsonValue] = {"type": "object", "properties": {"pairs": {"type": "array"}}}


def _request(text: str, seed: int | None = None) -> ChatRequest:
    return ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": text}],
            "seed": seed,
            "response_format": {"type": "json_schema", "json_schema": {"name": "Pairs", "schema": PAIRS}},
        }
    )


def _examples(count: int) -> list[tuple[str, str]]:
    rows = [row["messages"] for row in make_corpus(count, 3)]
    return [(row[1]["content"], row[2]["content"]) for row in rows]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Write 10 new pairs.", 10),
        ("write exactly 7 new pairs like the examples", 7),
        ("Make 3 pairs", 3),
        ("Write some pairs", 5),
        ("The task of 2 pairs. Now write 12 more pairs!", 12),
        ("Write 0 pairs", 1),
        ("Write 9999 pairs", MAX_PAIRS),
    ],
)
def test_the_wanted_count_is_read_from_the_prompt(text: str, count: int) -> None:
    assert pairs_wanted(text) == count
    assert len(write_pairs(_request(text))) == count


def test_pairs_are_right_and_no_copies_of_examples_or_of_each_other() -> None:
    examples = _examples(6)
    lines = "\n".join(json.dumps({"prompt": prompt, "answer": record}) for prompt, record in examples)
    pairs = write_pairs(_request(f"{lines}\nWrite 30 new pairs"))
    texts = [pair["prompt"] for pair in pairs]
    assert all(pair["answer"] == understand(pair["prompt"]).as_json() for pair in pairs)
    assert len(texts) == 30
    shown = [prompt for prompt, _ in examples]
    assert max(fuzz.ratio(one, other) for one, other in itertools.combinations([*texts, *shown], 2)) < 90


@pytest.mark.parametrize(
    "form", ["{prompt}\n{answer}", "Message: {prompt}\nJSON: {answer}", "- user: {prompt} {answer}"]
)
def test_intents_are_read_from_any_form_of_example(form: str) -> None:
    text = form.format(prompt="Where is my tent?", answer=understand("Where is my tent?").as_json())
    assert intents_shown(text) == ["delivery"]
    assert intents_shown(json.dumps({"messages": text})) == ["delivery"]


def test_intents_seen_in_the_examples_are_preferred_but_not_alone() -> None:
    record = understand("Where is my tent?").as_json()
    pairs = write_pairs(_request(f"Where is my tent? {record}\nWrite 40 new pairs"))
    intents = [json.loads(pair["answer"])["intent"] for pair in pairs]
    assert intents.count("delivery") >= 20
    assert len(set(intents)) >= 5


def test_messages_are_found_in_lines_labels_and_json() -> None:
    found = messages_shown('Message: Where is it?\n{"prompt": "The tent is late.", "answer": "{}"}\n')
    assert {"Where is it?", "The tent is late."} <= set(found)


def test_the_same_request_gives_the_same_pairs_and_another_seed_or_prompt_others() -> None:
    text = "Write 5 new pairs"
    assert answer(_request(text, 1)) == answer(_request(text, 1))
    prompts = [
        {pair["prompt"] for pair in write_pairs(_request(prompt, seed))}
        for prompt, seed in ((text, 1), (text, 2), (text + " (batch 2)", 1))
    ]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]


def test_500_messages_that_are_distinct_come_from_50_calls() -> None:
    kept: list[str] = []
    for call in range(55):
        for pair in write_pairs(_request(f"Batch {call}. Write 10 new pairs")):
            if not any(fuzz.ratio(pair["prompt"], other) >= 90 for other in kept):
                kept.append(pair["prompt"])
    assert len(kept) >= 500


def test_cases_that_the_prompt_lists_are_kept_to() -> None:
    cases = [("refund", "low"), ("setup", "high"), ("refund", None), ("damage", "normal")]
    lines = [
        f"{number}. answer with `{json.dumps({'intent': intent} | ({'urgency': urgency} if urgency else {}))}`, short"
        for number, (intent, urgency) in enumerate(cases, start=1)
    ]
    listed = "\n".join(["Write exactly 4 new pairs.", *lines])
    pairs = write_pairs(_request(listed))
    answers = [json.loads(pair["answer"]) for pair in pairs]
    assert [answer["intent"] for answer in answers] == [intent for intent, _ in cases]
    assert [answer["urgency"] for answer in answers][:2] == ["low", "high"]
    assert len(write_pairs(_request(listed.replace("4 new", "9 new")))) == 9


def test_pairs_are_kept_where_their_answer_is_the_right_one() -> None:
    right = understand("Where is my tent?").as_json()
    lines = [
        {"prompt": "an example", "answer": right},
        {"number": 1, "prompt": "Where is my tent?", "answer": right},
        {"number": 2, "prompt": "Where is my tent?", "answer": right.replace("delivery", "refund")},
        {"number": 3, "prompt": "Where is my tent?"},
    ]
    schema: dict[str, JsonValue] = {"type": "object", "properties": {"checks": {"type": "array"}}}
    request = _request("\n".join(json.dumps(line) for line in lines))
    assert request.response_format is not None
    form = {"type": "json_schema", "json_schema": {"name": "PairChecks", "schema": schema}}
    given = json.loads(answer(ChatRequest.model_validate(request.model_dump() | {"response_format": form})).text)
    assert [(one["number"], one["keep"]) for one in given["checks"]] == [(1, True), (2, False), (3, False)]
