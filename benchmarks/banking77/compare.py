"""What the runs say: mean accuracies, paired differences, and how many rows uniform seeding takes for the same marks.

The unit of chance is the seed (its first rows, its training) and within it the test row: intervals come from drawing
both anew, with replacement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

DRAWS = 2_000
DEFAULT = "weak, half uniform"

Runs = dict[tuple[str, int], dict[int, list[int]]]
"""(arm, rows added) -> seed -> for each test row whether it was right"""


def compared(
    results: Sequence[dict[str, Any]], at: int, target: str = DEFAULT, reference: str = "uniform"
) -> dict[str, Any]:
    """`at` is the number of added rows that all arms are compared at, `target` the arm that the product has as its
    default.
    """
    runs: Runs = {}
    for result in results:
        # What the filters dropped may leave a row or two fewer than asked for.
        runs.setdefault((result["arm"], result["asked"]), {})[result["seed"]] = result["right"]
    seeds = sorted(runs[reference, at])
    draws = _draws(runs, seeds)
    arms = []
    for (arm, added), by_seed in sorted(runs.items(), key=lambda item: (item[0][1], item[0][0])):
        entry: dict[str, Any] = {
            "arm": arm,
            "added": added,
            "accuracy": round(_mean(by_seed, sorted(by_seed)), 4),
            "by_seed": [round(sum(right) / len(right), 4) for _, right in sorted(by_seed.items())],
        }
        if added == at and arm != reference and sorted(by_seed) == seeds:
            ends = _interval([_mean(by_seed, *drawn) - _mean(runs[reference, at], *drawn) for drawn in draws])
            entry["difference"] = round(_mean(by_seed, seeds) - _mean(runs[reference, at], seeds), 4)
            entry["difference_95"] = [round(end, 4) for end in ends]
            ends = _interval([_ratio(runs, arm, reference, at, *drawn) for drawn in draws])
            entry["rows_ratio"] = round(_ratio(runs, arm, reference, at, seeds), 3)
            entry["rows_ratio_95"] = [round(end, 3) for end in ends]
        arms.append(entry)
    default = next(entry for entry in arms if (entry["arm"], entry["added"]) == (target, at))
    return {
        "rows_ratio_targeted_to_uniform": default["rows_ratio"],
        "rows_ratio_95": default["rows_ratio_95"],
        "seeds": len(seeds),
        "arms": arms,
    }


def rows_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> float:
    """Rows at which a curve (rows, accuracy), made to rise only, first reaches `accuracy`; between its points on a
    straight line. Its last number of rows where it never does: then fewer is not claimed than was seen.
    """
    best = curve[0][1]
    if accuracy <= best:
        return float(curve[0][0])
    for (left, _), (right, found) in pairwise(curve):
        if found >= accuracy:
            return left + (right - left) * (accuracy - best) / (found - best)
        best = max(best, found)
    return float(curve[-1][0])


def _ratio(
    runs: Runs, target: str, reference: str, at: int, seeds: Sequence[int], rows: Sequence[int] | None = None
) -> float:
    """Rows that `target` added over those that `reference` needs for the same mean."""
    curve = [(added, by_seed) for (arm, added), by_seed in runs.items() if arm in (reference, "first")]
    points = sorted((added, _mean(by_seed, seeds, rows)) for added, by_seed in curve)
    needed = rows_needed(points, _mean(runs[target, at], seeds, rows))
    return at / max(needed, 1.0)


def _draws(runs: Runs, seeds: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """DRAWS samples of seeds and of test rows."""
    chance = random.Random(0)
    size = len(next(iter(next(iter(runs.values())).values())))
    return [(chance.choices(seeds, k=len(seeds)), chance.choices(range(size), k=size)) for _ in range(DRAWS)]


def _mean(by_seed: dict[int, list[int]], seeds: Sequence[int], rows: Sequence[int] | None = None) -> float:
    total = 0.0
    for seed in seeds:
        right = by_seed[seed]
        total += sum(right) / len(right) if rows is None else sum(right[row] for row in rows) / len(rows)
    return total / len(seeds)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]
