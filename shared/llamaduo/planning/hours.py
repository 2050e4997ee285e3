"""How many hours a migration takes, roughly: from simple figures measured on a CPU, and from nothing on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.event_parts import Split
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.planning.calls import Stage, in_shards, llm_of, rows_of_an_early_pass
from llamaduo.planning.machine import Machine
from llamaduo.planning.sizes import Sizes

# Measured with 135 million weights on two shared cores with AVX-512 and AMX: the fast figure on a quiet machine, the
# slow one with a busy neighbour. To other sizes and numbers of cores they are stretched in proportion, which nobody
# has measured.
MEASURED_WEIGHTS, MEASURED_CORES, MOST_CORES_COUNTED = 135e6, 2, 8
TRAINED_TOKENS_A_S = (330.0, 110.0)
ANSWERED_TOKENS_A_S = (450.0, 80.0)
"""Prompt and answer together, with an adapter."""
BASE_IS_FASTER = 2.5
VALIDATION_PASS = 0.35
"""Time of a row that is only looked at, by that of one that is learnt from."""
START_S = (20.0, 60.0)
"""Of the training process, each round."""
# Of a provider nothing was measured: a second to five for a call.
CALL_S = (1.0, 5.0)
HOUR_S = 3600.0


class Hours(BaseModel):
    """`first`: round 0 passes, on a quiet machine; `every`: all rounds are needed, on a busy one. None: unknown."""

    model_config = ConfigDict(frozen=True)
    first: float | None
    every: float | None
    training_a_round: tuple[float, float] | None = Field(None, description="hours, quiet and busy")
    why: str = Field("", description="what the figures rest on, or why there are none")


def hours_of(
    spec: MigrationSpec,
    split: Mapping[Split, int],
    sizes: Sizes,
    stages: Sequence[Stage],
    machine: Machine,
    weights: Sequence[int | None],
) -> Hours:
    """Hours of training, answering and calling, one after the other; they overlap in truth.

    `weights` of each base model, smallest first: each round all are trained, and they answer until one passes.
    """
    calls = [_calling_s(spec, stages, which) for which in (0, 1)]
    if machine.gpus:
        why = (
            f"no speed was measured on a GPU: training and answering are not in it; the calls alone take "
            f"{calls[0] / HOUR_S:.2g} to {calls[1] / HOUR_S:.2g} hours"
        )
        return Hours(first=None, every=None, why=why)
    known = [size for size in weights if size is not None]
    if len(known) < len(weights):
        one = "the" if len(weights) == 1 else "a"
        return Hours(first=None, every=None, why=f"the size of {one} base model is unknown")
    slower = [size / MEASURED_WEIGHTS * MEASURED_CORES / min(machine.cores, MOST_CORES_COUNTED) for size in known]
    # Round 0 passes with the smallest; where all rounds are needed all answer in each, and the last one passes.
    answers, last = (slower[0], sum(slower)), (slower[0], slower[-1])
    untrained = (slower[0], slower[0] + (slower[-1] if len(slower) > 1 else 0.0))
    training: list[list[float]] = []
    answering, base, holdout = [], [], []
    learnt = spec.recipe.steps * spec.recipe.batch_size * spec.recipe.accumulation
    looked_at = spec.recipe.steps / spec.recipe.validate_every * split["validation"] * VALIDATION_PASS
    row = min(sizes.row, spec.recipe.max_length)
    answered = sizes.prompt + min(sizes.answer, spec.generation.max_tokens)
    early = min(split["test"], in_shards(spec, rows_of_an_early_pass(spec, split["test"])))
    base_rows = min(split["test"], in_shards(spec, spec.marking.baseline_rows or split["test"]))
    for which in (0, 1):
        learning = (learnt + looked_at) * row / TRAINED_TOKENS_A_S[which]
        training.append([learning * of_base + START_S[which] for of_base in slower])
        a_row = spec.generation.answers * answered / ANSWERED_TOKENS_A_S[which]
        answering.append(a_row * answers[which] * (early, split["test"])[which])
        rambling = spec.generation.answers * (sizes.prompt + spec.generation.max_tokens)
        base.append(base_rows * rambling / ANSWERED_TOKENS_A_S[which] / BASE_IS_FASTER * untrained[which])
        holdout.append(a_row * last[which] * split["holdout"])
    first = training[0][0] + answering[0] + base[0] + holdout[0] + calls[0]
    every = spec.budgets.rounds * (sum(training[1]) + answering[1]) + base[1] + holdout[1] + calls[1]
    return Hours(
        first=first / HOUR_S,
        every=every / HOUR_S,
        training_a_round=(sum(training[0]) / HOUR_S, sum(training[1]) / HOUR_S),
        why="rough: measured with 135M weights on 2 CPU cores, quiet and busy, stretched to this model and machine",
    )


def _calling_s(spec: MigrationSpec, stages: Sequence[Stage], which: int) -> float:
    seconds = 0.0
    for stage in stages:
        llm = llm_of(spec, stage.llm)
        calls = (stage.first, stage.every)[which]
        tokens = calls * (stage.input_tokens + stage.output_tokens)
        seconds += max(
            calls * 60 / llm.requests_per_minute,
            tokens * 60 / llm.tokens_per_minute if llm.tokens_per_minute is not None else 0.0,
            calls * CALL_S[which] / llm.concurrency,
        )
    return seconds
