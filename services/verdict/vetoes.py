"""Evaluators with a veto: one prompt below their best mark, and no round passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamaduo.event_parts import MetricRange
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.criteria import enough_marked
from services.verdict.marks import MetricKey

ROUNDING = 1e-9
"""How far below 1 the mean of best marks may be calculated."""


@dataclass
class Veto:
    """A metric that must be at its best for every prompt."""

    metric: MetricKey
    marked: int = 0
    violations: int = 0
    abstained: int = 0

    def take(self, share: float | None) -> bool:
        """One more prompt, on [0, 1]; whether it is a violation. Of several answers each must be at its best."""
        if share is None:
            self.abstained += 1
            return False
        self.marked += 1
        violated = share < 1 - ROUNDING
        self.violations += violated
        return violated

    @property
    def trusted(self) -> bool:
        """Whether few enough prompts went unmarked."""
        return enough_marked(self.marked, self.abstained)

    @property
    def told(self) -> str:
        """What it found, in words."""
        name = ".".join(self.metric)
        if self.violations:
            return f"{name} vetoes: {self.violations} of {self.marked} prompts violate it"
        return f"{name}: no violation in {self.marked} prompts"


def vetoes_of(spec: MigrationSpec, ranges: dict[MetricKey, MetricRange]) -> list[Veto]:
    """Every metric of the evaluators with a veto. ValueError for one that declares none: it could never object."""
    vetoes = [Veto(key) for key in sorted(ranges) if key[0] in spec.vetoes]
    for name in spec.vetoes:
        if name not in {veto.metric[0] for veto in vetoes}:
            raise ValueError(f"evaluator {name!r} has a veto and declares no metric")
    return vetoes


def told(vetoes: Iterable[Veto]) -> str:
    """What they found, in words."""
    return "; ".join(veto.told for veto in vetoes)
