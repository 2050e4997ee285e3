"""Whether a generated pair gives a validation, test or holdout row away.

Stricter than what keeps train rows apart: a good pair dropped costs a call, one let through costs the verdict.
On top of near copies, a pair gives a held row away when the row's text lies almost whole inside its own, or
when its answer is the row's and its words are the row's but for one in ten. The last asks for the same answer
because one word makes another case of many texts ("the tent", "the lamp").
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable

from pydantic import JsonValue
from rapidfuzz import fuzz, process

from llamaduo.datasets import Row
from services.synthesizer.alike_strings import RUN_CHARS, SHORT_CHARS, AlikeStrings
from services.synthesizer.near_copies import COMPARED_CHARS, Comparable, CopyFinder, Frame, comparable, words_of

INSIDE_MORE = 5  # points above the limit of near copies, for a row's text inside a longer one
WORDS_LESS = 10  # points below it, for the words of rows with the same answer
LEAST_WORDS = 3
LEAST_CHARS = 10
CLOSED_CHARS = 40  # a longer answer says the same in many ways, so it tells no two cases apart
RUN_BITS = 16_384
_STARTS, _ENDS = "\x01", "\x02"


class HeldRows:
    """The rows no generated row may resemble; `near_copy` (0-100) is the likeness of near copies."""

    def __init__(self, rows: Iterable[Row], frame: Frame, near_copy: float) -> None:
        texts = [(comparable(row.user_text, frame), row.answer) for row in rows]
        self._near = CopyFinder((text for text, _ in texts), near_copy)
        self._inside_limit = min(near_copy + INSIDE_MORE, 100)
        whole = sorted({text.whole.strip() for text, _ in texts if _may_lie_inside(text)}, key=len)
        self._inside = [(one, _runs(one)) for one in whole]
        self._lengths = [len(one) for one in whole]
        self._words: dict[str, AlikeStrings] = {}
        for index, (text, answer) in enumerate(texts):
            coded = coded_words(text)
            alike = self._words.setdefault(closed_parts(answer), AlikeStrings(near_copy - WORDS_LESS))
            alike.add(coded, len(coded), index)

    def given_away(self, text: Comparable, answer: str) -> bool:
        """Whether a pair of this text and answer gives one of the rows away."""
        return (
            self._near.resembles(text)
            or self._near.overlaps(text)
            or self._same_case(text, answer)
            or self._holds_one(text)
        )

    def _same_case(self, text: Comparable, answer: str) -> bool:
        alike = self._words.get(closed_parts(answer))
        coded = coded_words(text)
        return alike is not None and bool(alike.alike(coded, len(coded)))

    def _holds_one(self, text: Comparable) -> bool:
        whole = text.whole.strip()
        shorter = self._inside[: bisect_right(self._lengths, len(whole))]
        if len(whole) > SHORT_CHARS:
            # Searching long texts is dear: only for rows half of whose runs of characters are there at all.
            mine = _runs(whole)
            shorter = [(one, runs) for one, runs in shorter if 2 * (mine & runs).bit_count() >= runs.bit_count()]
        found = process.extractOne(
            whole, [one for one, _ in shorter], scorer=fuzz.partial_ratio, score_cutoff=self._inside_limit
        )
        return found is not None


def _may_lie_inside(text: Comparable) -> bool:
    """Two words, or a few letters, lie inside of texts that have nothing to do with them."""
    return LEAST_CHARS <= text.length <= COMPARED_CHARS and len(text.whole.split()) >= LEAST_WORDS


def _runs(text: str) -> int:
    """The runs of four characters in a text as bits of one integer: all of them, as in a text inside another."""
    bits = 0
    for start in range(len(text) - RUN_CHARS + 1):
        bits |= 1 << zlib.crc32(text[start : start + RUN_CHARS].encode("utf-8", "surrogatepass")) % RUN_BITS
    return bits


def coded_words(text: Comparable) -> str:
    """One character a word, so that comparing characters compares words (twice the longest common run of words
    in order by the words of both: ROUGE-L); with a mark at each end, so that texts of three words may differ
    in one.
    """
    codes = (zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in text.whole.split())
    return f"{_STARTS}{''.join(chr(0xE000 + code % 1_000_000) for code in codes)}{_ENDS}"


def closed_parts(answer: str) -> str:
    """What of an answer tells two cases apart: labels, numbers and short texts; "" for one that is a long text."""
    try:
        value: JsonValue = json.loads(answer)
        if isinstance(value, dict | list):
            return json.dumps(_closed(value), sort_keys=True)
    except (ValueError, RecursionError):
        pass
    return _closed_text(answer)


def _closed(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _closed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_closed(part) for part in value]
    return _closed_text(value) if isinstance(value, str) else value


def _closed_text(text: str) -> str:
    return "" if len(text) > CLOSED_CHARS else " ".join(words_of(text)) or text.strip()
