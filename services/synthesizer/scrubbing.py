"""Takes a test row's own text out of what an evaluator said about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.synthesizer.near_copies import words_of

PRIVATE_CHARS = 15
PRIVATE_WORDS = 4
LEAST_WORDS = 3
CUT = "…"

_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"\d{3,}")

_Stream = list[tuple[str, int]]


def scrub(reason: str, private: Sequence[str]) -> str:
    """`reason` without what it shares with the `private` texts; "" where too little is left to say anything.

    Cut are runs of 15 characters or 4 words that occur in a private text, whatever their case, spacing and
    punctuation, and numbers that occur there (orders, amounts, dates).
    """
    known = _Known(private)
    text = " ".join(reason.split())
    while marked := known.places_in(text):
        # What stands on both sides of a cut is read together next time round: it may be private text again.
        text = _without(text, marked)
    return text if len(words_of(text)) >= LEAST_WORDS else ""


class _Known:
    """Private texts, ready to look things up in."""

    def __init__(self, private: Sequence[str]) -> None:
        self._streams = ["".join(char for char, _ in stream) for text in private for stream in _streams(text)]
        self._worded = [f" {' '.join(word for word, _, _ in _words(text))} " for text in private]
        self._numbers = {number for text in self._worded for number in _numbers(text)}

    def places_in(self, text: str) -> set[int]:
        """Places of `text` that hold private text; a word is private as a whole."""
        places: set[int] = set()
        for stream in _streams(text):
            for start in range(len(stream) - PRIVATE_CHARS + 1):
                run = stream[start : start + PRIVATE_CHARS]
                window = "".join(char for char, _ in run)
                if any(window in known for known in self._streams):
                    places.update(place for _, place in run)
        words = _words(text)
        for start in range(len(words) - PRIVATE_WORDS + 1):
            run_of_words = words[start : start + PRIVATE_WORDS]
            phrase = f" {' '.join(word for word, _, _ in run_of_words)} "
            if any(phrase in known for known in self._worded):
                places.update(range(run_of_words[0][1], run_of_words[-1][2]))
        for word, first, last in words:
            if not self._numbers.isdisjoint(_numbers(word)) or not places.isdisjoint(range(first, last)):
                places.update(range(first, last))
        return places


def _streams(text: str) -> tuple[_Stream, _Stream]:
    """Lower-case characters with their places: as they stand, and with each run of other signs as one
    space.
    """
    plain = [(lower, place) for place, char in enumerate(text) for lower in char.lower()]
    joined: _Stream = []
    for char, place in plain:
        if char.isalnum():
            joined.append((char, place))
        elif joined and joined[-1][0] != " ":
            joined.append((" ", place))
    return plain, joined


def _words(text: str) -> list[tuple[str, int, int]]:
    """(word in lower case, its first place, the place after its last)."""
    words: list[tuple[str, int, int]] = []
    start: int | None = None
    for place, char in enumerate(text + " "):
        if char.isalnum():
            start = place if start is None else start
        elif start is not None:
            words.append((text[start:place].casefold(), start, place))
            start = None
    return words


def _numbers(text: str) -> list[str]:
    """Words with a digit in them, and runs of three digits and more inside words."""
    return [word for word in text.split() if _DIGIT.search(word)] + _LONG_NUMBER.findall(text)


def _without(text: str, places: set[int]) -> str:
    kept = "".join("\0" if place in places else char for place, char in enumerate(text))
    parts = [part.strip(f" {CUT}") for part in kept.split("\0")]
    return f" {CUT} ".join(part for part in parts if part)
