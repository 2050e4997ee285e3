"""Whether a failed round is followed by another: one pure function, asked by synthesizer and verdict alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamaduo.event_parts import Marks
from llamaduo.events import EvalFailed, EvalScored
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.serving_gate import judge_serving

StopRule = Literal["rounds", "budget", "hours", "no_gain", "serving", "silent_evaluator", "error"]


@dataclass(frozen=True)
class NextRound:
    """Go on: make the data of this round."""

    round: int


@dataclass(frozen=True)
class Stop:
    """End the migration by this rule."""

    rule: StopRule
    reason: str


def mean_of(marks: Marks, view: MigrationView) -> float:
    """One number on [0, 1] to compare rounds by: the mean over the gate's metrics, higher is better.

    Parity asks of every metric of the required evaluators.
    """
    spec = view.spec
    if spec is None:
        return 0.0
    scales = {(e.evaluator, metric): scale for e in view.of_type(EvalScored) for metric, scale in e.metrics.items()}
    shares = [
        to_unit(interval.mean, scales[evaluator, metric])
        for evaluator, metrics in marks.items()
        for metric, interval in metrics.items()
        if (evaluator, metric) in scales
        and (
            f"{evaluator}.{metric}" in spec.gate.absolute
            or (spec.gate.parity is not None and evaluator in spec.required)
        )
    ]
    return sum(shares) / len(shares) if shares else 0.0


def after_failure(view: MigrationView, number: int) -> NextRound | Stop:
    """What follows the failed round `number`. Depends on the log alone, never on the clock of the reader.

    ValueError if that round has not failed.
    """
    spec, request, failed = view.spec, view.request, view.decision(number)
    if spec is None or request is None or not isinstance(failed, EvalFailed):
        raise ValueError(f"round {number} of {view.migration} has not failed")
    budgets = spec.budgets
    # Measured only where all else was passed: more rows would make a model better, and no faster.
    if (measured := view.measured(number, failed.base)) is not None:
        speed = judge_serving(spec.gate, measured)
        return Stop("serving", f"round {number} passed all but gate.serving ({speed.verdict}): {speed.told}")
    if number + 1 >= budgets.rounds:
        return Stop("rounds", f"{budgets.rounds} rounds were allowed and none passed")
    hours = (failed.at - request.at).total_seconds() / 3600
    if hours >= budgets.hours:
        return Stop("hours", f"{hours:.1f} hours have gone by, {budgets.hours:g} were allowed")
    means = [mean_of(d.marks, view) for n in range(number + 1) if (d := view.decision(n)) is not None]
    best = max(range(len(means)), key=lambda i: (means[i], -i))
    if len(means) - 1 - best >= budgets.rounds_without_gain:
        return Stop("no_gain", f"no better mean in {budgets.rounds_without_gain} rounds")
    return NextRound(number + 1)
