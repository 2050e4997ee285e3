"""`python -m services.synthesizer.once synthesize|generate`: one step with no bus, from JSON on standard input.

What is asked and given back: `llamaduo.single_steps`. `llamaduo synthesize` and `llamaduo generate` start it.
"""

from __future__ import annotations

import argparse

from llamaduo.datasets import Row, ShardRow
from llamaduo.errors import PermanentError, UserInputError
from llamaduo.migrations.planned_rows import rows_wanted
from llamaduo.migrations.spec import Budgets, MigrationSpec, Synthesis
from llamaduo.single_steps import AnswersAsked, AnswersDone, SynthesisAsked, SynthesisDone, buying, serve_step
from llamaduo.tool_calls import read_answer
from llamaduo.tools_in_words import in_words
from services.synthesizer.asking import total_counts
from services.synthesizer.merging import merge
from services.synthesizer.references import answer_prompts
from services.synthesizer.splitting import split_coverage
from services.synthesizer.synthesis import synthesize
from services.synthesizer.teacher import ServiceTeacher


async def synthesize_once(asked: SynthesisAsked) -> SynthesisDone:
    """New rows, as a migration's next round would have them.

    UserInputError where there are failures and none is of a test row of this spec. PermanentError where the teacher
    gave nothing of use.
    """
    spec = asked.spec
    splits = split_coverage(asked.coverage, spec.splits, spec.seed, spec.synthesis.near_copy).rows
    splits["train"] = merge(splits["train"], asked.earlier)
    test = {row.id for row in splits["test"]}
    failures = [failure for failure in asked.failures if failure.row in test]
    if asked.failures and not failures:
        raise UserInputError(
            f"none of the {len(asked.failures)} failing rows is a test row of this spec",
            field="--failures",
            hint="they must come from answers to the same spec and dataset",
        )
    synthesis = _for_one_round(spec.synthesis, asked.number, aimed=bool(failures))
    wanted = rows_wanted(synthesis, len(splits["train"]))
    async with buying(asked, "synthesize") as (client, job):
        new = await synthesize(
            splits=splits,
            failures=failures,
            spec=spec.model_copy(update={"synthesis": synthesis}),
            migration=asked.task,
            round_number=1 + max((row.lineage.round for row in asked.earlier if row.lineage), default=0),
            teacher=ServiceTeacher(client, spec.teacher_llm, spec.budgets, migration=asked.task, job=job),
        )
    if new.problem is not None:
        raise PermanentError(new.problem)
    return SynthesisDone(
        rows=new.rows,
        wanted=wanted,
        aimed_at=len(failures),
        removed=new.removed,
        errors=new.errors,
        calls=new.counts,
    )


def _for_one_round(synthesis: Synthesis, number: int | None, *, aimed: bool) -> Synthesis:
    changes: dict[str, object] = {"strategy": "targeted" if aimed else "uniform"}
    if number is not None:
        changes |= {"rows_per_round": number, "rows_rule": "fixed"}
    return synthesis.model_copy(update=changes)


async def generate_once(asked: AnswersAsked) -> AnswersDone:
    """Answers to the test split. PermanentError where not one prompt was answered."""
    spec = asked.spec
    rows = split_coverage(asked.coverage, spec.splits, spec.seed, spec.synthesis.near_copy).rows["test"]
    llm, budgets = (spec.service_llm, spec.budgets) if asked.engine is None else (asked.engine, Budgets())
    async with buying(asked, "generate", len(rows) * spec.generation.answers) as (client, job):
        shard, answers = await answer_prompts(
            rows if asked.engine is None else as_taught(rows, spec),
            ServiceTeacher(client, llm, budgets, migration=asked.task, job=job),
            migration=asked.task,
            samples=spec.generation.answers,
            max_tokens=spec.generation.max_tokens,
            temperature=spec.generation.temperature,
        )
    if asked.engine is not None:
        shard = [as_asked(row, one) for row, one in zip(rows, shard, strict=True)]
    return AnswersDone(answers=shard, calls=total_counts(answers))


def as_taught(rows: list[Row], spec: MigrationSpec) -> list[Row]:
    """The rows as the small model is asked; tools by its own template stay as they are, its server renders them."""
    if spec.tool_wording == "template":
        return rows
    return [
        row.model_copy(update={"messages": in_words(row.messages, row.tools), "tools": None})
        if row.needs_tools
        else row
        for row in rows
    ]


def as_asked(row: Row, answered: ShardRow) -> ShardRow:
    """The answers to a row as evaluators read them, with the tools that it offers."""
    if not row.needs_tools:
        return answered
    texts = [None if text is None else read_answer(text).text for text in answered.answers]
    return answered.model_copy(update={"messages": row.prompt, "tools": row.tools, "answers": texts})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One step with no bus, from JSON on standard input.")
    parser.add_argument("step", choices=["synthesize", "generate"])
    if parser.parse_args().step == "synthesize":
        raise SystemExit(serve_step(SynthesisAsked, synthesize_once))
    raise SystemExit(serve_step(AnswersAsked, generate_once))
