"""How many test rows even the best marks need, held against the gamblers that decide."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llamaduo.cli.submission import prepare
from llamaduo.migrations.best_case import BETS, fewest_rows, log_wealth, parity_gate, right_of
from llamaduo.migrations.resolution import alpha_of_round
from services.verdict import statistics
from tests.unit.test_cli_submission import GOOD, KEYS, refused, write

FIRST = alpha_of_round(0.95, 0)


def played(gate: float, alpha: float, marks: list[float]) -> bool:
    """Whether the verdict's own gambler is sure by the last of these marks."""
    wealth = statistics.Wealth(gate, above=True)
    for mark in marks:
        wealth.take(mark)
    return wealth.sure(alpha)


def test_the_bets_are_the_verdicts() -> None:
    assert BETS == statistics.BETS


@pytest.mark.parametrize("gate", [0.0, 0.5, 0.7, 0.9, 0.95])
@pytest.mark.parametrize("number", [0, 4])
def test_fewest_rows_are_exact(gate: float, number: int) -> None:
    alpha = alpha_of_round(0.95, number)
    rows = fewest_rows(gate, alpha)
    assert rows is not None
    assert played(gate, alpha, [1.0] * rows)
    assert not played(gate, alpha, [1.0] * (rows - 1))


def test_the_figures_of_the_page() -> None:
    assert [fewest_rows(gate, FIRST) for gate in (0.5, 0.7, 0.8, 0.9, 0.95)] == [8, 15, 23, 49, 100]
    last = alpha_of_round(0.95, 4)
    assert [fewest_rows(gate, last) for gate in (0.5, 0.7, 0.8, 0.9, 0.95)] == [13, 25, 40, 85, 174]


def test_no_number_of_rows_shows_more_than_the_best() -> None:
    assert fewest_rows(1.0, FIRST) is None
    assert fewest_rows(0.5, FIRST, mark=0.5) is None
    assert right_of(10, 0.7, FIRST) is None


@pytest.mark.parametrize(("rows", "gate"), [(20, 0.7), (50, 0.7), (200, 0.7), (200, 0.9), (400, 0.5)])
def test_right_rows_are_exact_where_the_wrong_ones_come_last(rows: int, gate: float) -> None:
    right = right_of(rows, gate, FIRST)
    assert right is not None
    for number, enough in ((right, True), (right - 1, False)):
        marks = {1.0: number, 0.0: rows - number}
        assert (log_wealth(gate, marks) >= math.log(1 / FIRST)) is enough


@pytest.mark.parametrize("margin", [3.0, 10.0])
def test_equal_marks_pass_parity_after_so_many_rows(margin: float) -> None:
    rows = fewest_rows(parity_gate(margin), FIRST, mark=0.5)
    assert rows is not None
    assert played(parity_gate(margin), FIRST, [0.5] * rows)
    assert not played(parity_gate(margin), FIRST, [0.5] * (rows - 1))


def test_a_gate_that_not_even_a_perfect_model_could_pass_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, GOOD.replace("exact: 0.7", "exact: 0.9")))
    assert error.line == 11
    assert "not even a perfect model could pass: 49 test rows are needed for 0.9, there are 20" in str(error)


def test_repeats_that_may_be_asked_for_take_more_rows(tmp_path: Path) -> None:
    spec = GOOD.replace("{name: llm-judge, role: advisory}", "llm-judge").replace("exact: 0.7", "exact: 0.75")
    repeats = spec + "marking: {repeats: 3}\n"
    assert prepare(write(tmp_path, spec), environment=KEYS)
    assert "24 test rows are needed for 0.75, there are 20" in str(refused(write(tmp_path, repeats)))
    # An evaluator that only advises is not asked again, and takes none of the error.
    assert prepare(
        write(tmp_path, repeats.replace("llm-judge", "{name: llm-judge, role: advisory}")), environment=KEYS
    )


def test_the_best_mark_as_a_gate_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, GOOD.replace("exact: 0.7", "exact: 1.0"), rows=2000))
    assert "1 is the best mark there is" in str(error)


def test_a_gate_that_is_just_possible_gets_a_note(tmp_path: Path) -> None:
    assert not any("few for" in note for note in prepare(write(tmp_path, rows=60), environment=KEYS).notes)
    tight = prepare(write(tmp_path, GOOD.replace("exact: 0.7", "exact: 0.85"), rows=80), environment=KEYS).notes
    assert any("40 test rows are few for 0.85: to pass in round 0 a model must get 40" in note for note in tight)


def test_a_parity_margin_too_fine_for_equal_marks_gets_a_note(tmp_path: Path) -> None:
    spec = GOOD.replace("absolute: {exact-match.exact: 0.7}", "parity: {margin: 3}")
    few = prepare(write(tmp_path, spec, rows=300), environment=KEYS).notes
    assert any("150 test rows are few for a margin of 3" in note and "needs 169" in note for note in few)
    enough = prepare(write(tmp_path, spec, rows=400), environment=KEYS).notes
    assert not any("few for" in note for note in enough)
