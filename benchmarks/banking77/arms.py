"""The arms of the comparison: each says which rows are added to the first ones, all from the same recorded teacher.

`uniform` is the paper's way: examples are train rows, each equally often. `weak` is ours: examples are validation
rows that the first model has not learnt. The others were tried beside it; see `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.banking77.recorded_teacher import RecordedTeacher
from llamaduo.datasets import Row, make_row
from llamaduo.event_parts import FailingRow
from llamaduo.migrations.spec import MigrationSpec
from services.synthesizer.synthesis import synthesize

FLOOR = 0.25
SURPLUS = 3

Answering = Callable[[Sequence[Row]], Awaitable[dict[str, str]]]
"""What the first model answers to some rows, by row id"""


@dataclass(frozen=True)
class Situation:
    """After the first training: `weak` are ids of validation rows that the model has not learnt, the worst first."""

    train: list[Row]
    pool: list[Row]
    validation: list[Row]
    weak: list[str]
    given: dict[str, str]
    seed: int
    answer: Answering


async def added_rows(arm: str, situation: Situation, number: int) -> list[Row]:
    """The `number` rows that `arm` adds."""
    teacher = RecordedTeacher(situation.pool, situation.seed)
    match arm:
        case "uniform":
            return await _synthesized(situation, teacher, number, "uniform", 1.0, [])
        case "weak":
            return await _synthesized(situation, teacher, number, "targeted", 0.0, situation.weak)
        case "weak, half uniform":
            return await _synthesized(situation, teacher, number, "targeted", 0.5, situation.weak)
        case "any validation row":
            every = [row.id for row in situation.validation]
            random.Random(situation.seed).shuffle(every)
            return await _synthesized(situation, teacher, number, "targeted", 0.0, every)
        case "train rows near failures":
            return await _synthesized(situation, teacher, number, "targeted", 0.5, [])
        case "labels by errors":
            return _by_errors(situation, teacher, number)
        case "surplus, wrong ones kept":
            surplus = await _synthesized(situation, teacher, SURPLUS * number, "uniform", 1.0, [])
            return await _wrong_first(situation, surplus, number)
        case "no examples":
            return _balanced(situation, teacher, number)
    raise ValueError(arm)


async def _synthesized(
    situation: Situation, teacher: RecordedTeacher, number: int, strategy: str, share: float, weak: Sequence[str]
) -> list[Row]:
    """What the synthesizer adds with these settings."""
    spec = MigrationSpec.model_validate(
        {
            "name": "banking",
            "coverage": "banking.jsonl",
            "base_model": "small",
            "service_llm": "openai:recorded",
            "evaluators": ["label-accuracy"],
            "gate": {"absolute": {"label-accuracy.accuracy": 0.9}},
            "synthesis": {"rows_per_round": number, "strategy": strategy, "uniform_share": share},
        }
    )
    # Without weak rows the same rows are what was failed on.
    near_failures = strategy == "targeted" and not weak
    failures = [
        FailingRow(row=row.id, mark=0.0)
        for row in situation.validation
        if near_failures and situation.given[row.id] != row.answer
    ]
    new = await synthesize(
        splits={
            "train": situation.train,
            "validation": [] if near_failures else situation.validation,
            "test": situation.validation if near_failures else [],
            "holdout": [],
        },
        failures=failures,
        spec=spec,
        migration=f"banking-{situation.seed}",
        round_number=1,
        teacher=teacher,
        weak=weak,
    )
    return new.rows


def _by_errors(situation: Situation, teacher: RecordedTeacher, number: int) -> list[Row]:
    """More rows of the labels with more errors: what is known to gain nothing, to compare."""
    errors = Counter(row.answer for row in situation.validation if situation.given[row.id] != row.answer)
    labels = sorted({row.answer for row in situation.train})
    weights = [errors[label] + FLOOR for label in labels]
    examples = _examples(situation)
    drawn = random.Random(situation.seed).choices(labels, weights, k=number)
    return _rows(
        teacher, [(label, examples[label][place % len(examples[label])]) for place, label in enumerate(drawn)]
    )


def _balanced(situation: Situation, teacher: RecordedTeacher, number: int) -> list[Row]:
    """Rows of each label at random: a teacher that needs no examples and knows the task's whole breadth."""
    labels = sorted({row.answer for row in situation.train})
    return _rows(teacher, [(labels[place % len(labels)], None) for place in range(number)])


async def _wrong_first(situation: Situation, surplus: list[Row], number: int) -> list[Row]:
    """Of each label equally many, those first that the first model answers wrongly."""
    given = await situation.answer(surplus)
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in surplus:
        by_label[row.answer].append(row)
    ordered = [sorted(rows, key=lambda row: given[row.id] == row.answer) for _, rows in sorted(by_label.items())]
    in_turn = [rows[place] for place in range(len(surplus)) for rows in ordered if place < len(rows)]
    return in_turn[:number]


def _examples(situation: Situation) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in situation.train:
        found[row.answer].append(row.user_text)
    return found


def _rows(teacher: RecordedTeacher, asked: Sequence[tuple[str, str | None]]) -> list[Row]:
    given = (teacher.row_like(label, example) for label, example in asked)
    return [make_row(row.messages, source="generated") for row in given if row is not None]
