"""An endless order of rows in which each comes equally often, and at every length kinds as often as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llamaduo.datasets import Row
from llamaduo.identity import content_digest

Rank = Callable[..., str]
"""A hex digest of some fields: chance that is the same each time"""


class Placed(NamedTuple):
    """A row, and how many rows of its kind came before it."""

    row: Row
    before: int


class BalancedOrder:
    """Runs through all rows in one shuffled order, then in another. In each, rows of a kind lie evenly spread."""

    def __init__(self, rows: Sequence[Row], kind_of: Callable[[Row], str], rank: Rank) -> None:
        self._kinds: dict[str, list[Row]] = {}
        for row in rows:
            self._kinds.setdefault(kind_of(row), []).append(row)
        self._size = len(rows)
        self._rank = rank
        self._epochs: dict[int, list[Placed]] = {}

    def at(self, position: int) -> Placed:
        """The row at `position`, from 0 on without end."""
        epoch, place = divmod(position, self._size)
        if epoch not in self._epochs:
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch][place]

    def _shuffled(self, epoch: int) -> list[Placed]:
        keyed = []
        for kind, rows in self._kinds.items():
            start = int(self._rank("kind", epoch, content_digest(kind))[:8], 16) / 16**8
            shuffled = sorted(rows, key=lambda row: self._rank("row", epoch, row.id))
            for index, row in enumerate(shuffled):
                keyed.append(((index + start) / len(rows), kind, Placed(row, epoch * len(rows) + index)))
        return [placed for _, _, placed in sorted(keyed, key=lambda one: one[:2])]
