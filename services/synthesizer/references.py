"""The service LLM's own answers to a shard of prompts: the bar that the small model has to reach."""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.datasets import Row, ShardRow
from llamaduo.errors import PermanentError
from llamaduo.identity import seed_of
from services.synthesizer.asking import Teacher, TeacherAnswer, TeacherPrompt


def reference_prompts(
    rows: Sequence[Row],
    *,
    migration: str,
    samples: int = 1,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> list[TeacherPrompt]:
    """The prompts of a shard as they stand, `samples` calls a row: row by row, then sample by sample."""
    return [
        TeacherPrompt(
            job=f"reference/{row.id}/{sample}",
            messages=row.prompt,
            seed=seed_of("reference", migration, row.id, sample),
            sample=sample,
            max_tokens=max_tokens,
            temperature=temperature,
            response_format=row.response_format,
            tools=row.tools,
        )
        for row in rows
        for sample in range(samples)
    ]


def reference_rows(rows: Sequence[Row], answers: Sequence[TeacherAnswer], samples: int = 1) -> list[ShardRow]:
    """The shard for the evaluators; `answers` in the order of `reference_prompts`. ValueError if their
    number differs.
    """
    if len(answers) != len(rows) * samples:
        raise ValueError(f"{len(answers)} answers to {len(rows)} rows of {samples} samples")
    shard = []
    for index, row in enumerate(rows):
        own = answers[index * samples : (index + 1) * samples]
        shard.append(
            ShardRow(
                row=row.id,
                messages=row.prompt,
                reference=row.answer,
                answers=[answer.text for answer in own],
                errors=[answer.error or "no answer" for answer in own if answer.text is None],
                meta=row.meta,
                response_format=row.response_format,
                tools=row.tools,
            )
        )
    return shard


async def answer_prompts(
    rows: Sequence[Row],
    teacher: Teacher,
    *,
    migration: str,
    samples: int = 1,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> tuple[list[ShardRow], list[TeacherAnswer]]:
    """The shard with the answers, and these as they came. PermanentError where there is not one."""
    prompts = reference_prompts(
        rows, migration=migration, samples=samples, max_tokens=max_tokens, temperature=temperature
    )
    answers = await teacher.ask(prompts)
    if all(answer.text is None for answer in answers):
        raise PermanentError(f"the service LLM answered none of {len(answers)} prompts: {answers[0].error}")
    return reference_rows(rows, answers, samples), answers
