"""How many new rows a round wants, and how many calls of the service LLM that takes: known before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamaduo.migrations.spec import MigrationSpec, Synthesis

OVER_ASK = 1.1
"""Pairs asked for by pairs wanted: some are dropped"""


@dataclass(frozen=True)
class PlannedRound:
    """One round of synthesis if every call gives what it is asked for but for a tenth; `train_rows` are all rows
    then trained on. `check_calls` is the most there can be of them.
    """

    round: int
    new_rows: int
    train_rows: int
    calls: int
    check_calls: int


def rows_wanted(synthesis: Synthesis, train_rows: int) -> int:
    """New rows of the next round, where the last one trained on `train_rows`."""
    if synthesis.rows_rule == "double":
        return min(max(train_rows, 1), synthesis.rows_per_round)
    return synthesis.rows_per_round


def planned_calls(spec: MigrationSpec, train_rows: int) -> list[PlannedRound]:
    """The rounds of synthesis, should each one before fail; `train_rows` are the team's own in the train split.

    Rows are at most what `max_calls_per_round` allows. A migration may pass, or be stopped, in any of them.
    """
    synthesis = spec.synthesis
    rounds = []
    for number in range(1, spec.budgets.rounds):
        calls = math.ceil(rows_wanted(synthesis, train_rows) * OVER_ASK / synthesis.pairs_per_call)
        calls = min(calls, synthesis.max_calls_per_round)
        new_rows = min(rows_wanted(synthesis, train_rows), calls * synthesis.pairs_per_call)
        train_rows += new_rows
        rounds.append(PlannedRound(number, new_rows, train_rows, calls, calls if synthesis.self_check else 0))
    return rounds
