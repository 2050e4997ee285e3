"""How alike two texts are, 0 to 100: twice the longest common subsequence over the summed lengths.

The same measure as rapidfuzz's `fuzz.ratio`, in plain Python, so that the emulator needs no further package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def _common_subsequence(left: str, right: str) -> int:
    """Length of the longest common subsequence, by the bits of one integer (Hyyrö's recurrence)."""
    places: dict[str, int] = {}
    for index, char in enumerate(left):
        places[char] = places.get(char, 0) | 1 << index
    full = (1 << len(left)) - 1
    unmatched = full
    for char in right:
        hit = unmatched & places.get(char, 0)
        unmatched = ((unmatched + hit) | (unmatched - hit)) & full
    return len(left) - unmatched.bit_count()


def likeness(left: str, right: str) -> float:
    """0 (nothing in common) to 100 (equal); two empty texts are equal."""
    total = len(left) + len(right)
    return 100.0 if total == 0 else 200.0 * _common_subsequence(left, right) / total


def sorted_words(text: str) -> str:
    """The text's words in the order of the alphabet, in lower case: what is left when only order differs."""
    return " ".join(sorted(re.findall(r"\w+", text.lower())))


def is_near_copy(text: str, others: Iterable[str], limit: float) -> bool:
    """Whether any of the others is at least `limit` alike. Lengths alone rule most of them out."""
    for other in others:
        total = len(text) + len(other)
        reachable = 200.0 * min(len(text), len(other)) / total if total else 100.0
        if reachable >= limit and likeness(text, other) >= limit:
            return True
    return False
