"""Writes support messages of the grammar, together with the record that each of them means."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from services.emulator.grammar import (
    BODIES,
    CLOSINGS,
    GREETINGS,
    ORDER_FORMS,
    ORDER_LETTERS,
    PRODUCTS,
    TYPOS,
    URGENCIES,
    URGENCY_PHRASES,
)
from services.emulator.records import Triage

_WITH_ORDER = 0.6
_NORMAL_WITHOUT_PHRASE = 0.15
_WITH_GREETING = 0.4
_WITH_CLOSING = 0.15
_WITH_TYPO = 0.12
_LOWER_CASE = 0.12
_TITLE_PRODUCT = 0.08


@dataclass(frozen=True)
class WrittenMessage:
    """A message, what it means, and the body it was made from (an index into the intent's bodies)."""

    text: str
    meaning: Triage
    body: int


def _spell_order(rng: random.Random, order: str) -> str:
    form = rng.random()
    if form < 0.7:
        return order
    return f"{order[0]}-{order[1:]}" if form < 0.85 else order.lower()


def _misspell(rng: random.Random, text: str) -> str:
    """One known word misspelt, where there is one."""
    places = [found for found in re.finditer(r"[A-Za-z]+", text) if found[0].lower() in TYPOS]
    if not places:
        return text
    place = rng.choice(places)
    wrong = TYPOS[place[0].lower()]
    if place[0][0].isupper():
        wrong = wrong.capitalize()
    return text[: place.start()] + wrong + text[place.end() :]


def write_message(
    rng: random.Random, intent: str, urgency: str | None = None, body: int | None = None
) -> WrittenMessage:
    """One message with this intent; what is not given is drawn from `rng`."""
    level = urgency or rng.choice(URGENCIES)
    index = rng.randrange(len(BODIES[intent])) if body is None else body
    product = rng.choice(PRODUCTS)
    order = f"{rng.choice(ORDER_LETTERS)}{rng.randrange(10_000):04d}" if rng.random() < _WITH_ORDER else None

    shown = product.title() if rng.random() < _TITLE_PRODUCT else product
    parts = [BODIES[intent][index].replace("{p}", shown)]
    if order is not None:
        form = rng.choice(ORDER_FORMS).replace("{o}", _spell_order(rng, order))
        parts.insert(0 if rng.random() < 0.25 else 1, form)
    if level != "normal" or rng.random() >= _NORMAL_WITHOUT_PHRASE:
        parts.insert(0 if rng.random() < 0.1 else len(parts), rng.choice(URGENCY_PHRASES[level]))
    if rng.random() < _WITH_GREETING:
        parts.insert(0, rng.choice(GREETINGS))
    if rng.random() < _WITH_CLOSING:
        parts.append(rng.choice(CLOSINGS))

    text = " ".join(parts)
    if rng.random() < _WITH_TYPO:
        text = _misspell(rng, text)
    if rng.random() < _LOWER_CASE:
        text = text.lower()
    return WrittenMessage(text=text, meaning=Triage(intent, product, order, level), body=index)
