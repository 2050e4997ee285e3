"""Takes a test row's own text out of what an evaluator said about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.synthesizer.near_copies import words_of

PRIVATE_CHARS = 15
PRIVATE_WORDS = 4
UNSPACED_CHARS = 6  # in scripts that write no spaces, six signs say what four words do
UNSPACED_WORD = 12  # letters of a "word" that is none
LEAST_WORDS = 3
TELLING_LETTERS = 4  # of a word that says what a text is about
TOLD_SHARE = 0.5
CUT = "…"

_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"\d{3,}")

_Stream = list[tuple[str, int]]


def scrub(reason: str, said: Sequence[str], answer: str = "") -> str:
    """`reason` without what it shares with the private texts; "" where too little is left to say anything, or
    where it still retells one of them.

    Private are the messages of a row (`said`) and its `answer`. Cut are runs of 15 characters or 4 words that
    occur in one, whatever their case, spacing and punctuation (6 characters in scripts without spaces), messages
    shorter than that as a whole, and numbers (orders, amounts, dates). A reason retells a text when more than
    half of its words of four letters and more are in it, in whatever order.
    """
    known = [*(_private(text, whole=True) for text in said), _private(answer, whole=False)]
    numbers = {number for text in known for number in _numbers(text.worded)}
    text = " ".join(reason.split())
    while marked := _places(text, known, numbers):
        # What stands on both sides of a cut is read together next time round: it may be private text again.
        text = _without(text, marked)
    return text if len(words_of(text)) >= LEAST_WORDS and not retells(text, said) else ""


def retells(reason: str, said: Sequence[str]) -> bool:
    """Whether more than half of what one of the texts is about can be read from `reason`."""
    left = set(words_of(reason))
    for text in said:
        telling = {word for word in words_of(text) if len(word) >= TELLING_LETTERS}
        if len(telling) > 1 and len(telling & left) > TOLD_SHARE * len(telling):
            return True
    return False


@dataclass(frozen=True)
class _Private:
    """One private text: its characters, its words, and how long a run of either is private."""

    streams: tuple[str, ...]
    worded: str
    run_chars: int
    run_words: int


def _private(text: str, *, whole: bool) -> _Private:
    words = [word for word, _, _ in _words(text)]
    streams = tuple("".join(char for char, _ in stream) for stream in _streams(text))
    unspaced = any(len(word) > UNSPACED_WORD and not word.isascii() for word in words)
    short = len(words) if whole and 0 < len(words) < PRIVATE_WORDS else PRIVATE_WORDS
    run = UNSPACED_CHARS if unspaced else PRIVATE_CHARS
    return _Private(streams, f" {' '.join(words)} ", run, short)


def _places(text: str, known: Sequence[_Private], numbers: set[str]) -> set[int]:
    """Places of `text` that hold private text; a word is private as a whole, but for scripts without spaces."""
    places: set[int] = set()
    streams, words = _streams(text), _words(text)
    for private in known:
        for stream in streams:
            for start in range(len(stream) - private.run_chars + 1):
                run = stream[start : start + private.run_chars]
                window = "".join(char for char, _ in run)
                if any(window in own for own in private.streams):
                    places.update(place for _, place in run)
        for start in range(len(words) - private.run_words + 1):
            run_of_words = words[start : start + private.run_words]
            phrase = f" {' '.join(word for word, _, _ in run_of_words)} "
            if phrase in private.worded:
                places.update(range(run_of_words[0][1], run_of_words[-1][2]))
    for word, first, last in words:
        if not numbers.isdisjoint(_numbers(word)) or not places.isdisjoint(range(first, last)):
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
