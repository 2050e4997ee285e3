"""The scripted teacher: reads a support message by the phrases of the grammar.

Every message of the grammar is read exactly, misspellings and casing included. Anything else gets a best
guess by word overlap, which is always a valid record.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from services.emulator.grammar import BODIES, INTENTS, PRODUCTS, TYPOS, URGENCY_PHRASES
from services.emulator.records import Triage

_SLOT = "_p_"
_UNKNOWN_PRODUCT = "unknown"
_MAX_MESSAGE = 4000  # characters that are read; a support message is far shorter
_ORDER = re.compile(r"(?<![A-Za-z0-9])([A-Za-z])-?(\d{4})(?![A-Za-z0-9])")
_NAMED = re.compile(r"(?<= )(?:the|my|this|new|old|a) (?=([a-z]{3,}) ([a-z]{3,})?)")
_UNTYPO = {wrong: right for right, wrong in TYPOS.items()}


def plain(text: str) -> str:
    """Lower case, known misspellings undone, words and apostrophes only, one space on each side of a word."""
    straight = text[:_MAX_MESSAGE].lower().replace("\u2019", "'")
    words = re.findall(r"[a-z0-9'_]+", straight)
    return " " + " ".join(_UNTYPO.get(word, word) for word in words) + " "


@lru_cache(maxsize=1)
def _body_phrases() -> tuple[tuple[str, str], ...]:
    """(plain body with the slot, intent), longest first, so that the most specific phrase wins."""
    pairs = [(plain(body.replace("{p}", _SLOT)), intent) for intent in INTENTS for body in BODIES[intent]]
    return tuple(sorted(pairs, key=lambda pair: (-len(pair[0]), pair[0])))


@lru_cache(maxsize=1)
def _urgency_phrases() -> tuple[tuple[str, str], ...]:
    pairs = [(plain(phrase), level) for level, phrases in URGENCY_PHRASES.items() for phrase in phrases]
    return tuple(sorted(pairs, key=lambda pair: (-len(pair[0]), pair[0])))


@lru_cache(maxsize=1)
def _products() -> tuple[str, ...]:
    return tuple(sorted(PRODUCTS, key=lambda name: (-len(name), name)))


@lru_cache(maxsize=1)
def _word_weights() -> dict[str, dict[str, float]]:
    """word -> intent -> the share of the word's uses that belong to the intent."""
    uses: dict[str, Counter[str]] = {}
    for phrase, intent in _body_phrases():
        for word in set(phrase.split()) - {_SLOT}:
            uses.setdefault(word, Counter())[intent] += 1
    return {word: {intent: n / counts.total() for intent, n in counts.items()} for word, counts in uses.items()}


def _find_order(message: str) -> str | None:
    found = _ORDER.search(message[:_MAX_MESSAGE])
    return found[1].upper() + found[2] if found else None


def _find_product(text: str) -> tuple[str, str]:
    """(product, the text with the product replaced by the slot)."""
    for product in _products():
        if f" {product} " in text:
            return product, text.replace(f" {product} ", f" {_SLOT} ", 1)
    known = _word_weights()
    for first, second in _NAMED.findall(text):
        if first not in known:
            guess = f"{first} {second}" if second and second not in known else first
            return guess, text.replace(f" {guess} ", f" {_SLOT} ", 1)
    return _UNKNOWN_PRODUCT, text


def _find_intent(text: str) -> str:
    for phrase, intent in _body_phrases():
        if phrase in text:
            return intent
    scores = dict.fromkeys(INTENTS, 0.0)
    weights = _word_weights()
    for word in set(text.split()):
        for intent, weight in weights.get(word, {}).items():
            scores[intent] += weight * weight
    return max(INTENTS, key=lambda intent: scores[intent])


def _find_urgency(text: str) -> str:
    for phrase, level in _urgency_phrases():
        if phrase in text:
            return level
    return "normal"


def understand(message: str) -> Triage:
    """The record for a support message: exact for messages of the grammar, else a best guess."""
    text = plain(message)
    product, slotted = _find_product(text)
    return Triage(
        intent=_find_intent(slotted),
        product=product,
        order=_find_order(message),
        urgency=_find_urgency(text),
    )
