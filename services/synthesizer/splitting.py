"""Assigns the coverage dataset to train, validation, test and holdout, once and for good.

Groups of near copies go whole to one split. Groups are taken by the rank of a hash, so the result depends
on the rows and the seed, never on the order of the file; every split is a random sample of the groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llamaduo.datasets import Row
from llamaduo.errors import UserInputError
from llamaduo.event_parts import Split
from llamaduo.identity import canonical_json, identity
from llamaduo.migrations.quotas import plan_quotas
from llamaduo.migrations.spec import FEWEST, Splits
from services.synthesizer.near_copies import comparable, near_copy_groups, shared_frame

_ORDER: tuple[Split, ...] = ("train", "validation", "test", "holdout")
_TAKEN_FIRST: tuple[Split, ...] = ("test", "holdout", "validation", "train")


@dataclass(frozen=True)
class Splitted:
    """The splits in their frozen order, rows left out, and what a person should know of it."""

    rows: dict[Split, list[Row]]
    unused: list[Row]
    groups: int
    largest_group: int
    notes: list[str]


def split_coverage(rows: Iterable[Row], splits: Splits, seed: int, near_copy: float) -> Splitted:
    """Assign rows to splits; `near_copy` (0-100) is the similarity at which two rows must stay together.

    Where `splits.train` is 0 train takes all that is left; otherwise rows beyond the quotas are left out.
    Train and validation are ordered by row id, test and holdout by hash, so that a prefix of them is a
    random sample. UserInputError where the dataset is too small or too repetitive for the minima (train 4,
    validation 2, test 8).
    """
    distinct = _distinct(rows)
    quotas, notes = plan_quotas(len(distinct), splits)
    frame = shared_frame(row.user_text for row in distinct)
    indices = near_copy_groups([comparable(row.user_text, frame) for row in distinct], near_copy)
    groups = [[distinct[index] for index in group] for group in indices]
    groups.sort(key=lambda group: identity("split", seed, min(row.id for row in group)))
    largest = max(len(group) for group in groups)

    assigned: dict[Split, list[Row]] = {}
    for split in _TAKEN_FIRST:
        quota = quotas[split]
        taken, groups = _take(groups, quota) if quota is not None else (groups, [])
        assigned[split] = [row for group in taken for row in group]
        if quota is not None and len(assigned[split]) < quota:
            notes.append(f"{split} has {len(assigned[split])} of {quota} rows: groups of near copies are kept whole")
    _check_minima(assigned, len(distinct), largest)

    unused = sorted((row for group in groups for row in group), key=lambda row: row.id)
    if unused:
        notes.append(f"{len(unused)} rows are beyond the quotas and in no split")
    notes.append(_precision_note(len(assigned["test"])))
    return Splitted(
        {split: _frozen_order(split, assigned[split], seed) for split in _ORDER},
        unused,
        len(indices),
        largest,
        notes,
    )


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """Rows by id, each once."""
    by_id: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.id, canonical_json(row.model_dump(mode="json")))):
        by_id.setdefault(row.id, row)
    return list(by_id.values())


def _take(groups: Sequence[list[Row]], quota: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """(taken, left): as many rows as whole groups allow up to `quota`, the earliest groups where there is a
    choice.
    """
    every_sum = (1 << (quota + 1)) - 1
    # Bit s of reachable[i] says whether groups i.. can make exactly s rows. Full masks share one integer.
    reachable = [1]
    for group in reversed(groups):
        sums = (reachable[-1] | reachable[-1] << len(group)) & every_sum
        reachable.append(every_sum if sums == every_sum else sums)
    reachable.reverse()
    wanted = reachable[0].bit_length() - 1
    taken, left = [], []
    for group, later in zip(groups, reachable[1:], strict=True):
        rest = wanted - len(group)
        if rest >= 0 and later >> rest & 1:
            taken.append(group)
            wanted = rest
        else:
            left.append(group)
    return taken, left


def _check_minima(assigned: dict[Split, list[Row]], found: int, largest: int) -> None:
    for split, minimum in FEWEST.items():
        if len(assigned[split]) < minimum:
            raise UserInputError(
                f"{split} gets {len(assigned[split])} rows, at least {minimum} are needed: {largest} of "
                f"{found} rows are near copies of one another and must stay together",
                field="coverage",
                hint="add different rows, raise synthesis.near_copy, or move what all prompts repeat into "
                "the system message",
            )


def _precision_note(test_rows: int) -> str:
    points = 98 / test_rows**0.5
    return f"{test_rows} test rows tell a share of right answers to about ±{points:.0f} points (95 %)"


def _frozen_order(split: Split, rows: list[Row], seed: int) -> list[Row]:
    if split in ("test", "holdout"):
        return sorted(rows, key=lambda row: identity("order", split, seed, row.id))
    return sorted(rows, key=lambda row: row.id)
