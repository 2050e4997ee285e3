"""How many rows each split gets: asked by whoever splits, and by whoever says beforehand what a dataset can tell."""

from __future__ import annotations

from llamaduo.errors import UserInputError
from llamaduo.event_parts import Split
from llamaduo.migrations.spec import FEWEST, Splits

DEFAULT_TEST_ROWS = 200
ROWS_FOR_A_HOLDOUT = 20


def plan_quotas(found: int, splits: Splits) -> tuple[dict[Split, int | None], list[str]]:
    """Rows of each split for a dataset of `found` rows (None: all that is left), and notes.

    Quotas of 0 get their defaults, smaller ones where those asked for leave too little. UserInputError
    where even the minima do not fit.
    """
    asked, needed = splits.asked, splits.needed
    for split, number in splits.too_small.items():
        raise UserInputError(f"{number} rows asked for, at least {FEWEST[split]} are needed", field=f"splits.{split}")
    if sum(needed.values()) > found:
        parts = " + ".join(f"{split} {number}" for split, number in needed.items() if number)
        raise UserInputError(
            f"{found} rows found, {sum(needed.values())} needed: {parts}",
            field="splits" if any(asked.values()) else "coverage",
            hint="add rows or ask for smaller splits",
        )

    quotas: dict[Split, int | None] = {split: number or None for split, number in asked.items()}
    defaults: dict[Split, int] = {
        "test": min(DEFAULT_TEST_ROWS, found // 2),
        "validation": found // 10,
        "holdout": found // 10 if found >= ROWS_FOR_A_HOLDOUT else 0,
    }
    open_splits = [split for split in defaults if not asked[split]]
    wished = sum(max(defaults[split], FEWEST[split]) for split in open_splits)
    spare = found - sum(needed.values())
    extra = wished - sum(FEWEST[split] for split in open_splits)
    for split in open_splits:
        over = max(defaults[split] - FEWEST[split], 0)
        quotas[split] = FEWEST[split] + (over if extra <= spare else over * spare // extra)
    notes = []
    if extra > spare:
        shown = ", ".join(f"{split} {quotas[split]}" for split in open_splits)
        notes.append(f"default splits were made smaller to leave room for the others: {shown}")
    if quotas["holdout"] == 0:
        notes.append("there are no holdout rows: a pass cannot be checked on rows never looked at")
    return quotas, notes


def rows_by_split(found: int, splits: Splits) -> dict[Split, int]:
    """Rows that each split will have, at most: groups of near copies are kept whole, which may leave some out."""
    quotas, _ = plan_quotas(found, splits)
    taken = sum(number for number in quotas.values() if number is not None)
    return {split: found - taken if number is None else number for split, number in quotas.items()}
