"""The scripted teacher reads its whole grammar right, and always answers with a valid record."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.emulator.draws import draws
from services.emulator.grammar import (
    BODIES,
    CLOSINGS,
    GREETINGS,
    INTENTS,
    ORDER_FORMS,
    PRODUCTS,
    TYPOS,
    URGENCIES,
    URGENCY_PHRASES,
)
from services.emulator.records import Triage
from services.emulator.teacher import plain, understand
from services.emulator.writer import write_message


def test_the_grammar_is_as_wide_as_promised() -> None:
    assert len(INTENTS) == 8
    assert all(len(set(bodies)) >= 14 for bodies in BODIES.values())
    assert len(set(PRODUCTS)) >= 40
    assert set(URGENCY_PHRASES) == set(URGENCIES)
    assert all(len(set(phrases)) >= 8 for phrases in URGENCY_PHRASES.values())


@pytest.mark.parametrize("intent", INTENTS)
def test_every_body_with_every_product_and_urgency_is_read_right(intent: str) -> None:
    phrases = [("normal", ""), *((level, phrase) for level in URGENCIES for phrase in URGENCY_PHRASES[level])]
    for number, (body, product) in enumerate(itertools.product(BODIES[intent], PRODUCTS)):
        said = body.replace("{p}", product)
        for level, phrase in phrases:
            order = f"K{number:04d}" if number % 2 else None
            form = ORDER_FORMS[number % len(ORDER_FORMS)].replace("{o}", order) if order else ""
            greeting, closing = GREETINGS[number % len(GREETINGS)], CLOSINGS[number % len(CLOSINGS)]
            message = f"{greeting} {said} {form} {phrase} {closing}"
            assert understand(message) == Triage(intent, product, order, level), message


def test_every_typo_in_every_phrase_is_undone() -> None:
    for intent in INTENTS:
        for body in BODIES[intent]:
            right = body.replace("{p}", "yoga mat")
            for word, wrong in TYPOS.items():
                misspelt = f" {right.lower()} ".replace(f" {word} ", f" {wrong} ")
                assert understand(misspelt).intent == intent, misspelt


def test_no_misspelling_is_a_word_of_the_grammar() -> None:
    phrases = [*itertools.chain(*BODIES.values()), *itertools.chain(*URGENCY_PHRASES.values()), *PRODUCTS]
    words = {word for phrase in [*phrases, *GREETINGS, *CLOSINGS] for word in plain(phrase).split()}
    assert not words & set(TYPOS.values())


def test_what_the_writer_writes_means_what_the_teacher_reads() -> None:
    rng = draws("test", 1)
    for number in range(5000):
        message = write_message(rng, INTENTS[number % len(INTENTS)])
        assert understand(message.text) == message.meaning, message.text


@pytest.mark.parametrize(
    ("spelling", "order"),
    [
        ("A4821", "A4821"),
        ("#a4821", "A4821"),
        ("A-4821", "A4821"),
        ("AB4821", None),
        ("A48210", None),
        ("4821", None),
    ],
)
def test_order_numbers_are_brought_to_one_form(spelling: str, order: str | None) -> None:
    assert understand(f"Where is my tent? Order {spelling}.").order == order


@given(st.text(max_size=300))
def test_any_text_gets_a_valid_record(text: str) -> None:
    record = json.loads(understand(text).as_json())
    assert list(record) == ["intent", "product", "order", "urgency"]
    assert record["intent"] in INTENTS
    assert record["urgency"] in URGENCIES
    assert isinstance(record["product"], str) and record["product"]


def test_an_unknown_wording_gets_a_sensible_guess() -> None:
    guess = understand("hello! i'd really love a refund, the samovar was a let-down, order z1234")
    assert guess == Triage("refund", "samovar", "Z1234", "normal")
    assert understand("hm?").product == "unknown"


def test_the_record_is_one_compact_line_with_a_fixed_order_of_keys() -> None:
    record = Triage("refund", "desk lamp", None, "low").as_json()
    assert record == '{"intent":"refund","product":"desk lamp","order":null,"urgency":"low"}'
