"""Puts generated rows to the train rows of the rounds before."""

from __future__ import annotations

from collections.abc import Iterable

from llamaduo.datasets import Row


def merge(train: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Train rows of the next round: the team's own first, by id, then generated ones by round and id.

    A row is kept once; the team's own row and the earlier round win. Merging the same rows again changes
    nothing.
    """
    by_id: dict[str, Row] = {}
    for row in sorted([*train, *new], key=_place):
        by_id.setdefault(row.id, row)
    return list(by_id.values())


def _place(row: Row) -> tuple[bool, int, str]:
    return (row.source == "generated", row.lineage.round if row.lineage else 0, row.id)
