"""The LLM judge: a service LLM marks each answer for similarity to the reference and for precision, 0 to 100.

What the candidate wrote is data: it stands in a section of its own that it cannot leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from llamaduo import built_in_evaluators
from llamaduo.datasets import ShardRow
from llamaduo.errors import LlamaDuoError
from llamaduo.evaluators import Evaluator, Score, Scored, Task
from llamaduo.service_llm import Answer, Call, Mark100, ServiceLLMClient, count_calls, parse_one, work_spans
from services.judge.asking import LONGEST_REASON, abstained, judging_call, raise_what_ends_the_shard
from services.judge.options import check_options
from services.judge.sections import instruction_of, sections

NAME = built_in_evaluators.LLM_JUDGE
METRICS = tuple(built_in_evaluators.METRICS[NAME])

_PROMPT = (Path(__file__).parent / "prompts" / "judge.md").read_text(encoding="utf-8")


class Marks(BaseModel):
    """What the judge answers: each reason before its mark, so that the mark follows from it."""

    similarity_reason: str
    similarity: Mark100
    precision_reason: str
    precision: Mark100


def judge_messages(row: ShardRow, candidate: str) -> list[dict[str, str]]:
    """The judge's messages for one answer: what to do, then the three sections, the candidate last."""
    texts = {"instruction": instruction_of(row), "reference": row.reference, "candidate": candidate}
    return [{"role": "system", "content": _PROMPT}, {"role": "user", "content": sections(texts)}]


def judge_call(row: ShardRow, candidate: str, task: Task) -> Call:
    """The one call that marks an answer. Equal answers to one prompt are one call: it is bought once a repeat."""
    return judging_call("judge", row.row, judge_messages(row, candidate), Marks, task)


def scores_of(row: str, sample: int, answer: Answer | LlamaDuoError) -> list[Score]:
    """An answer of the judge as two scores; both abstain where it cannot be read or was refused."""
    if isinstance(answer, LlamaDuoError):
        return abstained(METRICS, row, sample, "the judge refused to mark this answer")
    marks, problems = parse_one(answer.text, Marks)
    if marks is None:
        return abstained(METRICS, row, sample, f"the judge's answer could not be read: {'; '.join(problems)}")
    return [
        Score(row, "similarity", marks.similarity, sample, marks.similarity_reason[:LONGEST_REASON]),
        Score(row, "precision", marks.precision, sample, marks.precision_reason[:LONGEST_REASON]),
    ]


async def judge(rows: Sequence[ShardRow], task: Task, client: ServiceLLMClient) -> Scored:
    """Mark all answers of a shard.

    A refusal of one call abstains on that answer. BudgetExhausted and RetryableError end the shard (what was
    bought is in the ledger), and so does a refusal of every call: a wrong key is no mark.
    """
    scores: dict[tuple[str, int], list[Score]] = {}
    asked: list[tuple[str, int, Call]] = []
    for row in rows:
        for sample, text in enumerate(row.answers):
            if text is None:
                scores[row.row, sample] = abstained(METRICS, row.row, sample, "there is no answer to mark")
            elif not text.strip():
                scores[row.row, sample] = [
                    Score(row.row, metric, 0.0, sample, "the answer is empty") for metric in METRICS
                ]
            else:
                asked.append((row.row, sample, judge_call(row, text, task)))
    answers = await client.ask_all([call for _, _, call in asked], task.spec.budgets)
    raise_what_ends_the_shard(answers)
    for (row_id, sample, _), answer in zip(asked, answers, strict=True):
        scores[row_id, sample] = scores_of(row_id, sample, answer)
    return Scored(
        scores=[score for row in rows for sample in range(len(row.answers)) for score in scores[row.row, sample]],
        calls=count_calls(answers),
        work=work_spans(answers),
    )


def llm_judge(client: ServiceLLMClient | None) -> Evaluator:
    """The evaluator `llm-judge`; without a client it only declares itself.

    Its version follows its prompt: another prompt would give other marks.
    """

    async def score(rows: Sequence[ShardRow], task: Task) -> Scored:
        if client is None:
            raise ValueError("this evaluator was made without a client, only to be declared")
        check_options(NAME, task.options, ())
        return await judge(rows, task, client)

    return Evaluator(
        name=NAME,
        version=f"2-{hashlib.sha256(_PROMPT.encode()).hexdigest()[:8]}",
        metrics=built_in_evaluators.METRICS[NAME],
        score=score,
        cost_per_row="one service LLM call an answer",
        noisy=NAME in built_in_evaluators.NOISY,
    )
