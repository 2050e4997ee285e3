"""Is the mean at or above the gate? Anytime-valid answers: looking after every shard costs no error.

Betting martingales (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024,
arXiv 2010.09686): wealth is the average over a grid of constant bets, a test martingale under "the mean is at most
m", so it ever reaches 1/alpha with probability at most alpha (Ville). All values are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

BETS = tuple((i + 0.5) / 20 for i in range(20))
"""Shares of the largest bet that can never be ruined."""


_BEYOND_DOUBT = 1e60
"""Wealth at which a gambler rests: no error rate in use asks for more, and products stay within a float."""


class Wealth:
    """What a gambler has who bets that the mean is above `m` (or, mirrored, below it). ValueError outside [0, 1]."""

    def __init__(self, m: float, *, above: bool) -> None:
        if not 0 <= m <= 1:
            raise ValueError(f"a bounded mean is in [0, 1], not {m}")
        self._m = m if above else 1 - m
        self._above = above
        most = 1 / self._m if self._m > 0 else 1e6
        self._bets = [share * most for share in BETS]
        self._purses = [1 / len(BETS)] * len(BETS)
        self._total = self._best = 1.0
        self._taken = 0

    def take(self, x: float) -> None:
        """One more value in [0, 1]."""
        self._taken += 1
        if self._best >= _BEYOND_DOUBT:
            return
        gain = (x if self._above else 1 - x) - self._m
        self._purses = [purse * (1 + bet * gain) for purse, bet in zip(self._purses, self._bets, strict=True)]
        self._total = sum(self._purses)
        self._best = max(self._best, self._total)

    def sure(self, alpha: float) -> bool:
        """Whether "the mean is not beyond m" is refuted at level alpha."""
        return self._best >= 1 / alpha

    @property
    def log(self) -> float:
        """Log of the wealth as it is now."""
        return math.log(self._total) if self._total > 0 else -math.inf

    def more_needed(self, alpha: float) -> float:
        """About how many more values make it sure if wealth grows on as it did; infinite if it has not grown."""
        if self.sure(alpha):
            return 0.0
        if self._total <= 1:
            return math.inf
        return math.log(1 / alpha / self._total) / math.log(self._total) * self._taken


def refuted(values: Iterable[float], m: float, alpha: float, *, above: bool) -> bool:
    """Whether the values refute "the mean is at most m" (`above`) or "at least m"."""
    wealth = Wealth(m, above=above)
    for value in values:
        wealth.take(value)
        if wealth.sure(alpha):
            return True
    return False


def confidence_sequence(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """A two-sided interval for the mean, valid at every n at once, alpha/2 on each side."""
    if not values:
        return 0.0, 1.0
    mean = sum(values) / len(values)
    low_in, low_out = mean, 0.0
    high_in, high_out = mean, 1.0
    for _ in range(14):
        middle = (low_in + low_out) / 2
        if refuted(values, middle, alpha / 2, above=True):
            low_out = middle
        else:
            low_in = middle
        middle = (high_in + high_out) / 2
        if refuted(values, middle, alpha / 2, above=False):
            high_out = middle
        else:
            high_in = middle
    return low_out, high_out
