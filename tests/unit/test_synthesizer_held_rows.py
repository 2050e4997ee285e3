"""Held rows: copies in many disguises are seen, other cases of the same task are not taken for copies."""

from __future__ import annotations

import random

import pytest

from benchmarks.disguises import KINDS, NEAR_VERBATIM, disguised
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Row
from services.emulator.corpus import make_corpus
from services.synthesizer.held_rows import HeldRows, closed_parts
from services.synthesizer.near_copies import Frame, comparable
from tests.support import ROOT
from tests.unit.synthesizer_rows import record, row, text

LIMIT = 90.0
TICKETS = read_coverage(ROOT / "examples" / "support-triage" / "tickets.jsonl")[:100]


def given_away(held: list[Row], prompt: str, answer: str) -> bool:
    return HeldRows(held, Frame(), LIMIT).given_away(comparable(prompt, Frame()), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_of_the_demos_tickets(kind: str) -> None:
    held = HeldRows(TICKETS, Frame(), LIMIT)
    answers = {one.user_text: one.answer for one in TICKETS}
    copies = disguised(list(answers), kind, 1)
    seen = sum(held.given_away(comparable(copy, Frame()), answers[source]) for source, copy in copies)
    least = {"synonyms": 0.7, "one_word_changed": 0.98}.get(kind, 1.0)
    assert len(copies) >= 80
    assert seen >= least * len(copies)
    assert kind in NEAR_VERBATIM or least < 1 or kind == "several_at_once"


def test_other_tickets_are_no_copies() -> None:
    held = HeldRows(TICKETS, Frame(), LIMIT)
    others = [(line["messages"][1]["content"], line["messages"][2]["content"]) for line in make_corpus(200, 5)]
    assert sum(held.given_away(comparable(prompt, Frame()), answer) for prompt, answer in others) <= 4


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Can I top up by cheque?", "top up", True),
        ("Can I top up by cheque?", "cheques", False),
        ("Could I top up by card?", "Top-up", True),
        ("Is it possible to top up with a card?", "top up", False),
        ("Good day. can i top upp by card? Thanks, and see you soon in the branch.", "top up", True),
        ("Good day. can i top up by card? Thanks, and see you soon in the branch.", "other", True),
        ("Card by up top I can?", "other", True),
        ("Something else altogether, that nobody asked about.", "top up", False),
    ],
)
def test_one_word_is_another_case_only_where_the_answer_is_another(prompt: str, answer: str, expected: bool) -> None:
    assert given_away([row("Can I top up by card?", "top up")], prompt, answer) is expected


def test_long_answers_never_make_another_case() -> None:
    held = [row("Tell me how the blue lamp is switched on at night.", "You press the button at the back. " * 3)]
    assert given_away(held, "Tell me how the blue lamp is switched off at night.", "Press the knob on its side. " * 3)


def test_few_letters_and_two_words_may_lie_in_any_text() -> None:
    assert not given_away([row("Is on", "a"), row("A b c", "b")], "What is on a b c today, please?", "c")


def test_a_held_text_is_found_inside_long_ones() -> None:
    chance = random.Random(3)
    held = [row(text(chance, 60), record(chance)) for _ in range(50)]
    target = held[20].user_text
    misspelt = f"{text(chance, 150)} {target[:50]}{target[51:]} {text(chance, 150)}"
    assert given_away(held, misspelt, record(chance))
    assert not given_away(held, text(chance, 400), record(chance))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Top-up fee", " top up FEE. ", True),
        ("top up fee", "top up limit", False),
        ('{"a":1,"b":"x"}', '{"b": "X", "a": 1}', True),
        ('{"a":1,"b":"x"}', '{"a":2,"b":"x"}', False),
        ('{"a":1,"why":"' + "long text " * 8 + '"}', '{"a":1,"why":"' + "other words " * 8 + '"}', True),
        ("Some long text of a careful clerk who explains it.", "Another long text of another clerk, in short.", True),
        ("???", "!!!", False),
        ("[" * 5_000, "{" * 5_000, True),
    ],
)
def test_what_tells_answers_apart(one: str, other: str, same: bool) -> None:
    assert (closed_parts(one) == closed_parts(other)) is same
