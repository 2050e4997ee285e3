"""Finds the strings, of many, that agree with a given one to a limit, without comparing it with each of them.

Only strings of similar length can agree. Of the longer ones, only those are compared that share half of their
runs of four characters: that misses copies with a changed letter in every second word and nothing that people,
models or exports do to a text, and makes comparing long texts three times faster.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right

from rapidfuzz import fuzz, process

SHORT_CHARS = 128  # up to here the comparison itself is as cheap as the check before it
RUN_CHARS = 4
SKETCH_BITS = 2_048
SKETCHED_CHARS = 512


class AlikeStrings:
    """Strings under integer keys; `limit` (0-100) is the least `fuzz.ratio` of alike ones."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        # Lists in one order, that of the lengths.
        self._lengths: list[int] = []
        self._strings: list[str] = []
        self._sketches: list[tuple[int, int]] = []  # and how many bits are set
        self._keys: list[int] = []

    def add(self, string: str, length: int, key: int) -> None:
        """Keep a string; `length` is that of the whole text where `string` is only a part of it."""
        place = bisect_right(self._lengths, length)
        self._lengths.insert(place, length)
        self._strings.insert(place, string)
        bits = sketch(string)
        self._sketches.insert(place, (bits, bits.bit_count()))
        self._keys.insert(place, key)

    def alike(self, string: str, length: int) -> list[int]:
        """Keys of the strings that agree with this one to the limit."""
        # The ratio is at most 200 * shorter / (shorter + longer).
        span = (200 - self._limit) / self._limit
        first = bisect_left(self._lengths, length / span - 1e-9)
        last = bisect_right(self._lengths, length * span + 1e-9)
        if length <= SHORT_CHARS:
            near = process.extract(
                string, self._strings[first:last], scorer=fuzz.ratio, score_cutoff=self._limit, limit=None
            )
            return [self._keys[first + offset] for _, _, offset in near]
        mine = sketch(string)
        own = mine.bit_count()
        likely = [
            place
            for place, (other, count) in enumerate(self._sketches[first:last], start=first)
            if 2 * (mine & other).bit_count() >= (count if count < own else own)
        ]
        return [
            self._keys[place]
            for place in likely
            if fuzz.ratio(string, self._strings[place], score_cutoff=self._limit) >= self._limit
        ]


def sketch(string: str) -> int:
    """The runs of four characters in a string as bits of one integer; of a long string, a fixed sample of them."""
    # Samples of different lengths stay comparable: each is a part of the next larger one.
    sampled = (1 << max(len(string) // SKETCHED_CHARS, 1).bit_length() - 1) - 1
    bits = 0
    for start in range(len(string) - RUN_CHARS + 1):
        run = zlib.crc32(string[start : start + RUN_CHARS].encode("utf-8", "surrogatepass"))
        if run & sampled == 0:
            bits |= 1 << (run >> 8) % SKETCH_BITS
    return bits
