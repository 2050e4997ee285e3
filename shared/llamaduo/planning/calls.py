"""How many calls of service LLMs a migration makes, stage by stage, and what they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.built_in_evaluators import LLM_JUDGE, METRICS, NOISY, PAIRWISE
from llamaduo.event_parts import Split
from llamaduo.migrations.best_case import fewest_rows
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.planned_rows import planned_calls
from llamaduo.migrations.resolution import alpha_of_look
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.planning.sizes import Sizes

Role = Literal["service_llm", "teacher", "judge"]

CALLS_AN_ANSWER: dict[str, int] = {LLM_JUDGE: 1, PAIRWISE: 2}
"""Evaluator -> calls for one answer. What is not here asks no service LLM, or is somebody's own."""
JUDGE_PROMPT, JUDGE_ANSWER, JUDGE_ANSWER_MOST = 450, 120, 1024
"""Tokens: what the judge is told beside the three texts, two reasons and marks, and the most it may say. At most, a
byte is a token, as at the door of the budget.
"""
SYNTHESIS_PROMPT, SYNTHESIS_ANSWER_MOST = 350, 4096
EXAMPLES_A_CALL, TOKENS_A_PAIR, TOKENS_A_CHECK = 5, 12, 30


class Stage(BaseModel):
    """Calls of one kind. `first`: round 0 passes as early as it can; `every`: all rounds are needed; `most`: at most.

    Tokens are those of one call, likely and at most.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    when: str
    llm: Role
    once: int = Field(description="calls each time")
    first: int
    every: int
    most: int
    input_tokens: float
    output_tokens: float
    input_tokens_most: float
    output_tokens_most: float


def llm_of(spec: MigrationSpec, role: Role) -> ServiceLLM:
    """Who is called."""
    return {"service_llm": spec.service_llm, "teacher": spec.teacher_llm, "judge": spec.judge_llm}[role]


def stages_of(spec: MigrationSpec, split: Mapping[Split, int], sizes: Sizes) -> list[Stage]:
    """The stages that call a service LLM, in their order; those without a call are left out."""
    samples, rounds = spec.generation.answers, spec.budgets.rounds
    marks = samples * sum(CALLS_AN_ANSWER.get(choice.name, 0) for choice in spec.evaluators)
    test, holdout = split["test"], split["holdout"]
    base = min(test, in_shards(spec, spec.marking.baseline_rows or test))
    bases = len(spec.bases)
    early = min(test, in_shards(spec, rows_of_an_early_pass(spec, test)))
    planned = planned_calls(spec, split["train"])
    written = min(spec.synthesis.pairs_per_call * (sizes.row + TOKENS_A_PAIR), float(SYNTHESIS_ANSWER_MOST))
    shown = len(spec.task) / 4 + EXAMPLES_A_CALL * sizes.row
    shown_most = len(spec.task.encode()) + EXAMPLES_A_CALL * (sizes.prompt_bytes + sizes.answer_bytes)
    answer = min(sizes.answer, spec.generation.max_tokens)

    def judged(name: str, when: str, each: int, first: int, every: int, repeats: int = 0) -> Stage:
        return Stage(
            name=name,
            when=when,
            llm="judge",
            once=each,
            first=first,
            every=every,
            most=every * (1 + repeats),
            input_tokens=JUDGE_PROMPT + sizes.prompt + sizes.form + sizes.answer + answer,
            output_tokens=JUDGE_ANSWER,
            input_tokens_most=4 * JUDGE_PROMPT
            + sizes.prompt_bytes
            + sizes.form_bytes
            + sizes.answer_bytes
            + 4 * spec.generation.max_tokens,
            output_tokens_most=JUDGE_ANSWER_MOST,
        )

    stages = [
        Stage(
            name="its own answers to the test prompts",
            when="once",
            llm="service_llm",
            once=test * samples,
            first=test * samples,
            every=test * samples,
            most=test * samples,
            input_tokens=sizes.prompt + sizes.form,
            output_tokens=answer,
            input_tokens_most=sizes.request_most,
            output_tokens_most=spec.generation.max_tokens,
        ),
        judged("marks of these answers", "once", test * marks, test * marks, test * marks),
        # Of several the first one's, and the winner's where that is another.
        judged("marks of the untrained base", "once", base * marks, base * marks, base * marks * min(2, bases)),
        judged(
            "marks of the model",
            "each round",
            test * marks,
            early * marks,
            rounds * test * marks * bases,
            spec.marking.repeats,
        ),
        judged("marks of the holdout", "after a pass", holdout * marks, holdout * marks, holdout * marks),
        Stage(
            name="new training rows",
            when="after a failed round",
            llm="teacher",
            once=max((one.calls for one in planned), default=0),
            first=0,
            every=sum(one.calls for one in planned),
            most=len(planned) * spec.synthesis.max_calls_per_round,
            input_tokens=SYNTHESIS_PROMPT + shown,
            output_tokens=written,
            input_tokens_most=4 * SYNTHESIS_PROMPT + shown_most,
            output_tokens_most=SYNTHESIS_ANSWER_MOST,
        ),
        Stage(
            name="checks of these rows",
            when="after a failed round",
            llm="teacher",
            once=max((one.check_calls for one in planned), default=0),
            first=0,
            every=sum(one.check_calls for one in planned),
            most=len(planned) * spec.synthesis.max_calls_per_round if spec.synthesis.self_check else 0,
            input_tokens=SYNTHESIS_PROMPT + shown + written,
            output_tokens=spec.synthesis.pairs_per_call * TOKENS_A_CHECK,
            input_tokens_most=4 * SYNTHESIS_PROMPT + shown_most + 4 * SYNTHESIS_ANSWER_MOST,
            output_tokens_most=SYNTHESIS_ANSWER_MOST,
        ),
    ]
    return [stage for stage in stages if stage.most]


def in_shards(spec: MigrationSpec, rows: int) -> int:
    """Rows rounded up to whole shards."""
    return math.ceil(rows / spec.marking.shard_rows) * spec.marking.shard_rows


def rows_of_an_early_pass(spec: MigrationSpec, test: int) -> int:
    """Test rows after which round 0 is sure of a pass at the earliest, as far as the scales are known.

    Under parity no limit below the whole split is named: how much better than its bar a model is decides.
    """
    if spec.gate.parity is not None:
        return test
    needed = [1]
    for key, threshold in spec.gate.absolute.items():
        evaluator, _, metric = key.partition(".")
        scale = METRICS.get(evaluator, {}).get(metric)
        if scale is None:
            return test
        needed.append(fewest_rows(to_unit(threshold, scale), alpha_of_look(spec, 0, NOISY)) or test)
    return min(test, max(needed))
