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


class Wealth:
    """What a gambler has who bets that the mean is above `m` (or, mirrored, below it)."""

    def __init__(self, m: float, *, above: bool) -> None:
        if not 0 <= m <= 1:
            raise ValueError(f"a bounded mean is in [0, 1], not {m}")
        self._m = m if above else 1 - m
        self._above = above
        most = 1 / self._m if self._m > 0 else 1e6
        self._bets = [share * most for share in BETS]
        self._logs = [0.0] * len(BETS)
        self.best = 0.0
        """Largest log wealth so far."""

    def take(self, x: float) -> None:
        """One more value in [0, 1]."""
        value = x if self._above else 1 - x
        for i, bet in enumerate(self._bets):
            self._logs[i] += math.log(max(1e-300, 1 + bet * (value - self._m)))
        top = max(self._logs)
        log_mean = top + math.log(sum(math.exp(one - top) for one in self._logs) / len(self._logs))
        self.best = max(self.best, log_mean)

    def sure(self, alpha: float) -> bool:
        """Whether "the mean is not beyond m" is refuted at level alpha."""
        return self.best >= math.log(1 / alpha)


def alpha_of_round(confidence: float, number: int) -> float:
    """The error spent on round `number` (0-based): (1 - confidence) * 6 / (pi^2 * (number + 1)^2), summing to all."""
    return (1 - confidence) * 6 / (math.pi**2 * (number + 1) ** 2)


def refuted(values: Iterable[float], m: float, alpha: float, *, above: bool) -> bool:
    """Whether the values refute "the mean is at most m" (`above`) or "at least m"."""
    wealth = Wealth(m, above=above)
    for value in values:
        wealth.take(value)
    return wealth.sure(alpha)


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
