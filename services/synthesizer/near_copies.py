"""When two user texts count as copies of one another, and how copies are found among many.

Texts are compared without case, punctuation and spacing. They are near copies when their characters agree
to `limit` (0-100) in the written or in the alphabetical order of words, or when one of at least eight words
lies whole inside the other. Words that open or close every text of a dataset (an instruction that each
prompt repeats) are left out first: with them, all prompts would be copies of one another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from services.synthesizer.alike_strings import AlikeStrings

CONTAINED_WORDS = 8
SHARED_WORDS = 3
COMPARED_CHARS = 2_000
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Frame:
    """Words that open and close every prompt of a dataset."""

    opening: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparable:
    """A text made ready for comparing: `written` and `sorted` order of its words, both cut to what is
    compared.

    `whole` is padded with a space on each side, so that a search inside it respects words; `length` is in
    characters, uncut.
    """

    written: str
    sorted: str
    whole: str
    length: int


def words_of(text: str) -> list[str]:
    """The words of a text, in order, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shared_frame(texts: Iterable[str]) -> Frame:
    """The words all texts begin and end with; fewer than three in a row, or fewer than eight texts, are no
    frame.
    """
    worded = [words_of(text) for text in texts]
    if len(worded) < 8:
        return Frame()
    room = min(len(words) for words in worded) - 1  # something must be left of every text
    opening = _agreeing(worded, room)
    if len(opening) < SHARED_WORDS:
        opening = []
    closing = _agreeing([words[::-1] for words in worded], room - len(opening))[::-1]
    if len(closing) < SHARED_WORDS:
        closing = []
    return Frame(tuple(opening), tuple(closing))


def _agreeing(worded: Sequence[Sequence[str]], room: int) -> list[str]:
    shared = list(worded[0][: max(room, 0)])
    for words in worded:
        while shared != list(words[: len(shared)]):
            shared.pop()
    return shared


def comparable(text: str, frame: Frame) -> Comparable:
    """A text without the dataset's frame, ready for comparing."""
    words = words_of(text)
    opening, closing = len(frame.opening), len(frame.closing)
    if opening and len(words) > opening and tuple(words[:opening]) == frame.opening:
        words = words[opening:]
    if closing and len(words) > closing and tuple(words[-closing:]) == frame.closing:
        words = words[:-closing]
    written = " ".join(words) or text.strip()  # a text of signs alone is compared as it stands
    return Comparable(_cut(written), _cut(" ".join(sorted(words)) or text.strip()), f" {written} ", len(written))


def _cut(text: str) -> str:
    """Long texts are compared by their beginning and end: comparing costs the product of the lengths."""
    half = COMPARED_CHARS // 2
    return text if len(text) <= COMPARED_CHARS else text[:half] + text[-half:]


def near_copies(one: Comparable, other: Comparable, limit: float) -> bool:
    """Whether two texts are near copies at `limit` (0-100)."""
    return (
        fuzz.ratio(one.written, other.written) >= limit
        or fuzz.ratio(one.sorted, other.sorted) >= limit
        or _holds(one, other)
        or _holds(other, one)
    )


def _is_long(text: Comparable) -> bool:
    return text.whole.count(" ") > CONTAINED_WORDS


def _holds(outer: Comparable, inner: Comparable) -> bool:
    return _is_long(inner) and inner.whole in outer.whole


class CopyFinder:
    """Texts to compare new ones with; `add` grows it."""

    def __init__(self, texts: Iterable[Comparable], limit: float) -> None:
        self._texts: list[Comparable] = []
        self._written, self._sorted = AlikeStrings(limit), AlikeStrings(limit)
        for text in texts:
            self.add(text)

    def add(self, text: Comparable) -> None:
        """Compare later texts with this one too."""
        self._written.add(text.written, text.length, len(self._texts))
        self._sorted.add(text.sorted, text.length, len(self._texts))
        self._texts.append(text)

    def resembles(self, text: Comparable) -> bool:
        """Whether some text here agrees with `text` to the limit, in either order of words."""
        return bool(self._written.alike(text.written, text.length) or self._sorted.alike(text.sorted, text.length))

    def overlaps(self, text: Comparable) -> bool:
        """Whether some text here lies whole inside `text`, or the other way round."""
        return any(_holds(text, known) or _holds(known, text) for known in self._texts)


def near_copy_groups(texts: Sequence[Comparable], limit: float) -> list[list[int]]:
    """Indices of `texts` in groups: two near copies are in one group, and so is all that hangs together by them.

    Quadratic in the number of texts of similar length.
    """
    groups = _Groups(len(texts))
    written, ordered = AlikeStrings(limit), AlikeStrings(limit)
    for index, text in enumerate(texts):
        for strings, string in ((written, text.written), (ordered, text.sorted)):
            for other in strings.alike(string, text.length):
                groups.join(index, other)
            strings.add(string, text.length, index)
    for outer, inner in _contained(texts):
        groups.join(outer, inner)
    return groups.members()


def _contained(texts: Sequence[Comparable]) -> Iterable[tuple[int, int]]:
    """(outer, inner) for each text of enough words that lies whole inside another, found by its first
    words.
    """
    beginnings: dict[tuple[str, ...], list[int]] = {}
    for index, text in enumerate(texts):
        if _is_long(text):
            beginnings.setdefault(tuple(text.whole.split()[:CONTAINED_WORDS]), []).append(index)
    for outer, text in enumerate(texts):
        words = text.whole.split()
        for start in range(len(words) - CONTAINED_WORDS + 1):
            for inner in beginnings.get(tuple(words[start : start + CONTAINED_WORDS]), ()):
                if inner != outer and _holds(text, texts[inner]):
                    yield outer, inner


class _Groups:
    """Union-find over 0..size-1."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def join(self, one: int, other: int) -> None:
        self._parent[self._root(one)] = self._root(other)

    def members(self) -> list[list[int]]:
        by_root: dict[int, list[int]] = {}
        for index in range(len(self._parent)):
            by_root.setdefault(self._root(index), []).append(index)
        return list(by_root.values())
