"""Pairwise: a service LLM compares each answer with the reference, in both orders; only what it says twice counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from llamaduo.built_in_evaluators import METRICS, NOISY, PAIRWISE
from llamaduo.datasets import ShardRow
from llamaduo.errors import LlamaDuoError
from llamaduo.evaluators import Evaluator, Score, Scored, Task
from llamaduo.service_llm import Answer, Call, ServiceLLMClient, count_calls, parse_one, work_spans
from services.judge.asking import LONGEST_REASON, abstained, judging_call, raise_what_ends_the_shard
from services.judge.options import check_options
from services.judge.sections import instruction_of, sections

NAME = PAIRWISE
METRIC = "wins"
WIN, TIE, LOSS = 1.0, 0.5, 0.0

_PROMPT = (Path(__file__).parent / "prompts" / "pairwise.md").read_text(encoding="utf-8")


class Choice(BaseModel):
    """What the judge answers: the reason before the choice, so that the choice follows from it."""

    reason: str
    better: Literal["first", "second", "neither"]


def pairwise_messages(row: ShardRow, first: str, second: str) -> list[dict[str, str]]:
    """The judge's messages for two answers: what to do, then three sections. Neither is said to be the reference."""
    texts = {"instruction": instruction_of(row), "first": first, "second": second}
    return [{"role": "system", "content": _PROMPT}, {"role": "user", "content": sections(texts)}]


def pairwise_calls(row: ShardRow, candidate: str, task: Task) -> tuple[Call, Call]:
    """The candidate before the reference, and behind it."""
    orders = ((candidate, row.reference), (row.reference, candidate))
    one, other = (judging_call(NAME, row.row, pairwise_messages(row, *order), Choice, task) for order in orders)
    return one, other


def score_of(row: str, sample: int, ahead: Answer | LlamaDuoError, behind: Answer | LlamaDuoError) -> Score:
    """The two answers of the judge as one score; it abstains where either cannot be read or was refused."""
    choices: list[Choice] = []
    for answer in (ahead, behind):
        if isinstance(answer, LlamaDuoError):
            return _abstained(row, sample, "the judge refused to compare this answer")
        choice, problems = parse_one(answer.text, Choice)
        if choice is None:
            return _abstained(row, sample, f"the judge's answer could not be read: {'; '.join(problems)}")
        choices.append(choice)
    pair = choices[0].better, choices[1].better
    if pair == ("first", "second"):
        return Score(row, METRIC, WIN, sample, f"better in both orders: {choices[0].reason}"[:LONGEST_REASON])
    if pair == ("second", "first"):
        return Score(row, METRIC, LOSS, sample, f"worse in both orders: {choices[0].reason}"[:LONGEST_REASON])
    equal = "as good as the reference" if pair == ("neither", "neither") else "the order decided, so it is a tie"
    return Score(row, METRIC, TIE, sample, equal)


async def compare(rows: Sequence[ShardRow], task: Task, client: ServiceLLMClient) -> Scored:
    """Compare all answers of a shard with their references.

    An answer that is the reference ties, and an empty one loses, without a call. Failures are those of `llm-judge`.
    """
    scores: dict[tuple[str, int], Score] = {}
    asked: list[tuple[str, int]] = []
    calls: list[Call] = []
    for row in rows:
        for sample, text in enumerate(row.answers):
            if text is None:
                scores[row.row, sample] = _abstained(row.row, sample, "there is no answer to mark")
            elif text.strip() == row.reference.strip():
                scores[row.row, sample] = Score(row.row, METRIC, TIE, sample, "the answer is the reference")
            elif not text.strip():
                scores[row.row, sample] = Score(row.row, METRIC, LOSS, sample, "the answer is empty")
            else:
                asked.append((row.row, sample))
                calls += pairwise_calls(row, text, task)
    answers = await client.ask_all(calls, task.spec.budgets)
    raise_what_ends_the_shard(answers)
    for number, (row_id, sample) in enumerate(asked):
        scores[row_id, sample] = score_of(row_id, sample, answers[2 * number], answers[2 * number + 1])
    return Scored(
        scores=[scores[row.row, sample] for row in rows for sample in range(len(row.answers))],
        calls=count_calls(answers),
        work=work_spans(answers),
    )


def pairwise(client: ServiceLLMClient | None) -> Evaluator:
    """The evaluator `pairwise` with its one metric, `wins`; without a client it only declares itself."""

    async def score(rows: Sequence[ShardRow], task: Task) -> Scored:
        if client is None:
            raise ValueError("this evaluator was made without a client, only to be declared")
        check_options(NAME, task.options, ())
        return await compare(rows, task, client)

    return Evaluator(
        name=NAME,
        version=f"1-{hashlib.sha256(_PROMPT.encode()).hexdigest()[:8]}",
        metrics=METRICS[NAME],
        score=score,
        cost_per_row="two service LLM calls an answer",
        noisy=NAME in NOISY,
    )


def _abstained(row: str, sample: int, reason: str) -> Score:
    [score] = abstained((METRIC,), row, sample, reason)
    return score
