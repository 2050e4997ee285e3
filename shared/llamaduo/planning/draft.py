"""The first spec for a dataset: evaluators, gate, splits and recipe that suit its rows, as commented YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamaduo.built_in_evaluators import EXACT_MATCH, LLM_JUDGE, TOOL_CALL
from llamaduo.datasets import Row
from llamaduo.errors import UserInputError
from llamaduo.migrations.best_case import fewest_rows, parity_gate
from llamaduo.migrations.quotas import rows_by_split
from llamaduo.migrations.resolution import alpha_of_round, smallest_gap
from llamaduo.migrations.spec import FEWEST, Column, Splits, Synthesis
from llamaduo.planning.known_models import KnownModel, first_try
from llamaduo.planning.machine import Machine
from llamaduo.planning.sizes import Sizes, sizes_of
from llamaduo.planning.task_shape import Kind, TaskShape, shape_of
from llamaduo.planning.telling import parity_spread

CONFIDENCE = 0.95
GATES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
MARGINS = (2, 3, 5, 8, 10, 15, 20, 30, 40, 50)
GOOD_MODEL = 0.97
"""Share of right answers of a model that should be told from its gate."""
MOST_TEST_ROWS = {True: 500, False: 200}
"""By whether marks are free."""
BATCH = 8
SHOWN = 6
"""Labels or keys named in a comment."""
PASSES = 3
"""Times that each row of the second round's data is seen."""
STEPS_CPU, STEPS_GPU = (80, 400), (100, 2000)


@dataclass(frozen=True)
class Choice:
    """The evaluator that decides for a kind of task, its metric, and why; `also`: what runs where it is asked for."""

    evaluator: str
    metric: str
    why: str
    free: bool
    also: str = ""


# A further kind of task, or a better evaluator for one, is a line here. One that does not run on every bus
# (built_in_evaluators.ALWAYS_RUN) says in `also` how it is started.
CHOICES: dict[Kind, Choice] = {
    "labels": Choice(
        EXACT_MATCH, "exact", "a label is right or wrong: free", True,
        "label-accuracy forgives case and punctuation: llamaduo up --evaluator label-accuracy",
    ),
    "json": Choice(
        EXACT_MATCH, "exact", "JSON is equal or not, whatever its spacing: free", True,
        "json-schema says how often it is valid JSON at all: llamaduo up --evaluator json-schema",
    ),
    "tools": Choice(
        TOOL_CALL, "arguments", "the share of right arguments, none where another tool is called: free", True,
        "It runs where it is asked for: llamaduo up --evaluator tool-call",
    ),
    "text": Choice(
        LLM_JUDGE, "similarity", "good answers are worded in many ways, so a service LLM marks them: it costs calls",
        False, "rouge-l and chrf are free and compare words only: llamaduo up --evaluator chrf",
    ),
}  # fmt: skip


def draft_spec(
    rows: Sequence[Row],
    *,
    name: str,
    coverage: str,
    machine: Machine,
    service_llm: str = "openai:gpt-4o",
    base_models: Sequence[str] = (),
    columns: Mapping[Column, str] | None = None,
) -> str:
    """A spec for these different rows as YAML; `coverage` is the path, and `columns` are the names, as they stand in
    it.

    UserInputError where they are fewer than any migration needs.
    """
    fewest = sum(FEWEST.values())
    if len(rows) < fewest:
        raise UserInputError(f"{len(rows)} different rows are too few: {fewest} are needed", hint="add rows")
    shape, sizes = shape_of(rows), sizes_of(rows)
    choice = choice_of(shape)
    test = min(MOST_TEST_ROWS[choice.free], len(rows) // 2)
    split = rows_by_split(len(rows), Splits(test=max(test, FEWEST["test"])))
    known = None if base_models else first_try(machine)
    parts = [
        f"# Written by `llamaduo init` for {len(rows)} rows; every key is explained in docs/spec.md.",
        "# llamaduo plan FILE says what it will take, llamaduo migrate FILE submits it.",
        f"name: {name}",
        "# A paragraph on what the task is helps the model that writes new rows:",
        "# task: >",
        "#   Turn a short message from a customer into …",
        f"coverage: {json.dumps(coverage, ensure_ascii=False)}",
        *([f"columns: {json.dumps(dict(columns), ensure_ascii=False)}"] if columns else []),
        "",
        *_base_model(known, base_models, machine),
        "",
        "# Who does the task today; its key is read from OPENAI_API_KEY, or the variable that api_key_env names.",
        f"service_llm: {json.dumps(service_llm, ensure_ascii=False)}",
        "",
        f"# {shape_words(shape)}",
        f"# {choice.evaluator}: {choice.why}.",
        f"# {choice.also}.",
        f"evaluators: [{choice.evaluator}]",
        *gate_lines(choice, split["test"]),
        "",
        f"# Of {len(rows)} rows: {', '.join(f'{number} {part}' for part, number in split.items())}.",
        "# Train takes what is left over, and new rows are written for it; a verdict rests on the test rows.",
        f"splits: {{validation: {split['validation']}, test: {split['test']}, holdout: {split['holdout']}}}",
        f"recipe: {{steps: {steps_for(split['train'], machine)}, batch_size: {BATCH}, "
        f"max_length: {length_for(sizes)}}}",
        f"# The longest answer here has some {sizes.longest_answer} tokens.",
        f"generation: {{max_tokens: {answer_length_for(sizes)}}}",
        "",
        "# Hard stops. With a limit on money (US dollars) no call is sent that could pass it.",
        "budgets:",
        "  rounds: 4",
        "  hours: 24",
        "  # money: 20",
        "# manual: what passes is served only after `llamaduo promote`.",
        "promotion: auto",
    ]
    return "\n".join(parts) + "\n"


def choice_of(shape: TaskShape) -> Choice:
    """The evaluator for a task; JSON that holds prose is marked as text is."""
    return CHOICES["text" if shape.prose else shape.kind]


def shape_words(shape: TaskShape) -> str:
    """What was found, in one line."""
    match shape.kind:
        case "labels":
            return f"The answers are {len(shape.labels)} labels: {_listed(shape.labels)}."
        case "json":
            prose = f"; free text in {_listed(shape.prose)}" if shape.prose else ""
            return f"The answers are JSON with the keys {_listed(shape.keys)}{prose}."
        case "tools":
            return "The answers call tools."
    return "The answers are free text."


def _listed(words: Sequence[str]) -> str:
    """The first of them, on one line and without what cannot stand in a comment."""
    shown = ["".join(c if c.isprintable() else " " for c in word)[:30].strip() for word in words[:SHOWN]]
    return ", ".join(shown) + (", …" if len(words) > SHOWN else "")


def gate_lines(choice: Choice, test: int) -> list[str]:
    """A gate that so many test rows can tell, and what it means."""
    if choice.free:
        gate = absolute_gate(test)
        told = gate + smallest_gap(_spread(gate), test, _alpha()) <= GOOD_MODEL
        why = (
            f"the highest gate from which they tell a model that is right in {GOOD_MODEL:.0%}."
            if told
            else "few: even for this gate nearly all must be right. More rows allow a higher one."
        )
        return [
            f"# {test} test rows: {why}",
            f"gate: {{absolute: {{{choice.evaluator}.{choice.metric}: {gate:g}}}}}",
        ]
    margin = parity_margin(test)
    return [
        f"# Not worse than the service LLM by more than {margin} points of 100: what {test} test rows can tell.",
        f"gate: {{parity: {{margin: {margin}}}}}",
    ]


def absolute_gate(test: int) -> float:
    """The highest gate that a good model passes in nine of ten cases; where there is none, the highest in reach of a
    perfect one in round 0 and in the rounds after it.
    """
    for gate in GATES:
        if gate + smallest_gap(_spread(gate), test, _alpha()) <= GOOD_MODEL:
            return gate
    later = alpha_of_round(CONFIDENCE, 3)
    return next((gate for gate in GATES if (fewest_rows(gate, later) or math.inf) <= test), GATES[-1])


def parity_margin(test: int) -> int:
    """The smallest margin within which so many rows tell an equally good model, and pass one with equal marks."""
    spread = parity_spread(yes_no=False)
    for margin in MARGINS:
        equal = fewest_rows(parity_gate(margin), _alpha(), mark=0.5)
        if equal is not None and equal <= test and smallest_gap(spread, test, _alpha()) <= margin / 200:
            return margin
    return MARGINS[-1]


def steps_for(train: int, machine: Machine) -> int:
    """Optimizer steps: some passes over the train rows and the first new ones, within what the machine can do."""
    low, high = STEPS_GPU if machine.gpus else STEPS_CPU
    wanted = PASSES * (train + Synthesis().rows_per_round) / BATCH
    return min(high, max(low, math.ceil(wanted / 20) * 20))


def length_for(sizes: Sizes) -> int:
    """`recipe.max_length`: twice what the longest row is taken for, in steps of 64; a limit, so it costs nothing."""
    return min(4096, max(128, math.ceil(2 * sizes.longest_row / 64) * 64))


def answer_length_for(sizes: Sizes) -> int:
    """`generation.max_tokens`: the longest answer with half to spare, in steps of 16."""
    return min(2048, max(32, math.ceil(sizes.longest_answer * 1.5 / 16) * 16))


def _base_model(known: KnownModel | None, given: Sequence[str], machine: Machine) -> list[str]:
    if known is None:
        several, names = len(given) > 1, json.dumps(given if len(given) > 1 else given[0], ensure_ascii=False)
        return [f"base_models: {names}" if several else f"base_model: {names}"]
    return [
        f"# A first try for this machine ({machine.words}); licence {known.licence}. Larger ones learn more and",
        "# take longer: a Hub id, a folder or a .gguf file. `base_models: [a, b]` tries several, smallest first.",
        f"base_model: {known.hub_id}",
    ]


def _spread(gate: float) -> float:
    return math.sqrt(gate * (1 - gate))


def _alpha() -> float:
    return alpha_of_round(CONFIDENCE, 0)
