"""What even the best marks need: how many test rows a gate takes at the least, and how many of them must be right.

The verdict bets on the marks (services/verdict/statistics.py): against a gate `m` on [0, 1] its wealth is the average
over a grid of constant bets, each a share `s` of the largest that can never be ruined, 1/m. A row with mark x
multiplies such a bet's wealth by 1 + s/m * (x - m). So after n rows of which k are right and the others wrong

    wealth(n, k) = mean over s of (1 + s * (1/m - 1))^k * (1 - s)^(n - k)

and a round passes once that reaches 1/alpha. A perfect model (k = n) therefore needs the smallest n with
wealth(n, n) >= 1/alpha: the largest bet alone gains log(1/m) a row. These are no approximations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

BETS = tuple((i + 0.5) / 20 for i in range(20))
"""The verdict's grid; a test holds both together."""
MOST_ROWS = 1_000_000


def log_wealth(gate: float, marks: Mapping[float, float]) -> float:
    """Log of the verdict's wealth against "the mean is at most `gate`", after these marks: value -> how many rows.

    All on [0, 1]. ValueError for a gate outside of it.
    """
    if not 0 <= gate <= 1:
        raise ValueError(f"a gate is in [0, 1] here, not {gate}")
    most = 1 / gate if gate > 0 else 1e6
    logs = [
        math.fsum(rows * math.log(max(1e-300, 1 + share * most * (value - gate))) for value, rows in marks.items())
        for share in BETS
    ]
    top = max(logs)
    return top + math.log(math.fsum(math.exp(one - top) for one in logs) / len(logs))


def fewest_rows(gate: float, alpha: float, mark: float = 1.0) -> int | None:
    """Rows after which marks that all are `mark` pass `gate` at level `alpha`; None where no number of them does."""
    if mark <= gate:
        return None

    def enough(rows: int) -> bool:
        return log_wealth(gate, {mark: rows}) >= math.log(1 / alpha)

    low, high = 0, 1
    while not enough(high):
        if high > MOST_ROWS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def right_of(rows: int, gate: float, alpha: float) -> int | None:
    """How many of `rows` yes/no marks must be right to pass by the last of them; None where all are not enough."""
    if log_wealth(gate, {1.0: rows}) < math.log(1 / alpha):
        return None
    low, high = math.floor(gate * rows), rows  # at its gate or below no wealth grows
    while high - low > 1:
        middle = (low + high) // 2
        passes = log_wealth(gate, {1.0: middle, 0.0: rows - middle}) >= math.log(1 / alpha)
        low, high = (low, middle) if passes else (middle, high)
    return high


def parity_gate(margin: float) -> float:
    """A margin in points of 100 as a gate on [0, 1] for paired differences, which lie in [-1, 1]."""
    return (1 - margin / 100) / 2
