"""The verdict's benchmark: its simulated truth is what it says, and its judge is the verdict's own code."""

from __future__ import annotations

import random
from statistics import fmean, pstdev

import pytest

from benchmarks.verdict import GATE, MARGIN, PROMPTS, Cell, Kind, Marks, Spread, measure, migration, spec_of


@pytest.mark.parametrize("kind", ["absolute", "parity"])
@pytest.mark.parametrize("spread", ["0.22", "binary"])
@pytest.mark.parametrize("gap", [-20, 10])
def test_simulated_marks_have_the_mean_and_spread_they_claim(kind: Kind, spread: Spread, gap: int) -> None:
    cell = Cell(kind, spread, gap)
    chance = random.Random(4)
    own: list[float] = []
    service: list[float] = []
    for _ in range(40):
        marks = Marks(cell, chance)
        own += [marks.of_prompt(n) for n in range(PROMPTS)]
        service += marks.service
    assert fmean(own) == pytest.approx(cell.mean, abs=0.015)
    if spread != "binary":
        assert pstdev(own) == pytest.approx(float(spread), abs=0.01)
    if kind == "parity":
        assert fmean(service) == pytest.approx(GATE + MARGIN, abs=0.015)
        assert pstdev(a - b for a, b in zip(own, service, strict=True)) < 0.9 * (pstdev(own) + pstdev(service))


def test_clear_cases_are_told_right_and_cheaply() -> None:
    good = measure(Cell("absolute", "0.22", 20), 20)
    assert good["round0_passed"] == 1 and good["false_fail"] == 0 and good["calls"] <= 75
    bad = measure(Cell("parity", "0.22", -20), 20)
    assert bad["round0_failed"] == 1 and bad["false_pass"] == 0 and bad["certain_after"] <= bad["calls"]


def test_a_simulation_can_be_run_again() -> None:
    cell = Cell("absolute", "binary", 10)
    spec = spec_of(cell)
    assert migration(cell, spec, "7") == migration(cell, spec, "7")
    assert len({migration(cell, spec, str(seed)).calls for seed in range(8)}) > 1
