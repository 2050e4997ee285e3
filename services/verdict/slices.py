"""Floors for parts of the test rows: whether the worst part keeps a round from passing, or fails it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from llamaduo.event_parts import MetricRange
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.resolution import alpha_of_round
from llamaduo.migrations.spec import Gate
from services.verdict.marks import MetricKey, RowMarks
from services.verdict.statistics import Wealth


@dataclass
class Part:
    """Rows with one value of a column, and the gambler who bets that their mean is below the floor."""

    name: str
    number: int
    """Which value of its column this was, by first appearance: 0, 1, 2 ..."""
    floor: float
    min_rows: int
    below: Wealth
    values: list[float] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether there are enough rows to ask anything of it."""
        return len(self.values) >= self.min_rows

    @property
    def short(self) -> bool:
        """Whether its mean is below the floor, by chance or not."""
        return self.known and fmean(self.values) < self.floor


class SliceFloors:
    """All parts of the columns whose floors decide. Without such columns it holds nothing back and fails nothing."""

    def __init__(self, gate: Gate, ranges: dict[MetricKey, MetricRange]) -> None:
        self._gate, self._ranges = gate, ranges
        self.columns = sorted(column for column, rule in gate.slices.items() if rule.decides) if ranges else []
        self._parts: dict[tuple[str, str], Part] = {}

    def take(self, row: RowMarks) -> None:
        """One more prompt. ValueError where the metric of a floor is one that nobody gives."""
        for column in self.columns:
            key = self._key(column)
            value, where = row.values.get(key), row.slices.get(column)
            if value is None or where is None:
                continue
            if (column, where) not in self._parts:
                self._parts[column, where] = self._new(column, where)
            share = to_unit(value, self._ranges[key])
            self._parts[column, where].values.append(share)
            self._parts[column, where].below.take(share)

    def _key(self, column: str) -> MetricKey:
        evaluator, metric = self._gate.metric_of(column).split(".")
        if (evaluator, metric) not in self._ranges:
            raise ValueError(f"slices.{column} asks for {evaluator}.{metric}, which no evaluator gives")
        return evaluator, metric

    def _new(self, column: str, where: str) -> Part:
        rule = self._gate.slices[column]
        floor = min(1.0, max(0.0, to_unit(rule.floor, self._ranges[self._key(column)])))
        number = sum(one == column for one, _ in self._parts)
        return Part(f"{column} {where!r}", number, floor, rule.min_rows, Wealth(floor, above=False))

    def missed(self, alpha: float) -> str | None:
        """A part that is certainly below its floor; all parts of a column together are wrong at most at `alpha`.

        How many parts there are shows only as they come, so they share the error as rounds do.
        """
        return next(
            (p.name for p in self._parts.values() if p.known and p.below.sure(alpha_of_round(1 - alpha, p.number))),
            None,
        )

    @property
    def open(self) -> list[str]:
        """What does not let a round pass as yet: parts with too few rows so far or below their floor, and columns
        of which no part was seen.
        """
        return [part.name for part in self._parts.values() if not part.known or part.short] + self.unseen

    @property
    def unseen(self) -> list[str]:
        """Columns whose floors decide and in which no row so far has a value."""
        seen = {column for column, _ in self._parts}
        return [column for column in self.columns if column not in seen]

    @property
    def short(self) -> list[str]:
        """Parts below their floor, certainly or not."""
        return [part.name for part in self._parts.values() if part.short]
