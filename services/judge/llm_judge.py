"""The LLM judge: a service LLM marks each answer for similarity to the reference and for precision, 0 to 100.

What the candidate wrote is data: its tags are made harmless before it is placed between ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from llamaduo.datasets import ShardRow
from llamaduo.errors import BudgetExhausted, LlamaDuoError, ServiceLLMRefused
from llamaduo.evaluators import Evaluator, Score, Scored, Task
from llamaduo.events import MetricRange
from llamaduo.identity import seed_of
from llamaduo.service_llm import (
    Answer,
    Call,
    Mark100,
    ServiceLLMClient,
    count_calls,
    parse_one,
    work_spans,
)

NAME = "llm-judge"
METRICS = ("similarity", "precision")
MAX_TOKENS = 1024

_PROMPT = (Path(__file__).parent / "prompts" / "judge.md").read_text(encoding="utf-8")
_TAG = re.compile(r"<(?=\s*/?\s*(?:instruction|reference|candidate)\b)", re.IGNORECASE)
_LONGEST_REASON = 400


class Marks(BaseModel):
    """What the judge answers: each reason before its mark, so that the mark follows from it."""

    similarity_reason: str
    similarity: Mark100
    precision_reason: str
    precision: Mark100


def judge_messages(row: ShardRow, candidate: str) -> list[dict[str, str]]:
    """The judge's messages for one answer: what to do, then the three sections, the candidate last."""
    prompt = [message for message in row.messages if message.role != "assistant"]
    if len(prompt) == 1 and len(row.messages) == 1:
        instruction = prompt[0].content
    else:
        instruction = "\n\n".join(f"{message.role}: {message.content}" for message in row.messages)
    sections = {"instruction": instruction, "reference": row.reference, "candidate": candidate}
    text = "\n\n".join(f"<{name}>\n{harmless(body)}\n</{name}>" for name, body in sections.items())
    return [{"role": "system", "content": _PROMPT}, {"role": "user", "content": text}]


def harmless(text: str) -> str:
    """The text with our section tags, opening or closing, spelled so that they are none."""
    return _TAG.sub("&lt;", text)


def judge_call(row: ShardRow, candidate: str, task: Task) -> Call:
    """The one call that marks an answer. Equal answers to one prompt are one call: it is bought once a repeat."""
    llm = task.spec.judge_llm
    return Call(
        messages=judge_messages(row, candidate),
        llm=llm,
        migration=task.migration,
        job=task.job,
        purpose="judge",
        schema=Marks,
        max_tokens=MAX_TOKENS,
        temperature=llm.temperature if llm.temperature is not None else 0.0,
        seed=seed_of("judge", row.row, task.repeat),
        sample=task.repeat,
    )


def scores_of(row: str, sample: int, answer: Answer | LlamaDuoError) -> list[Score]:
    """An answer of the judge as two scores; both abstain where it cannot be read or was refused."""
    if isinstance(answer, LlamaDuoError):
        return _abstain(row, sample, "the judge refused to mark this answer")
    marks, problems = parse_one(answer.text, Marks)
    if marks is None:
        return _abstain(row, sample, f"the judge's answer could not be read: {'; '.join(problems)}")
    return [
        Score(row, "similarity", marks.similarity, sample, marks.similarity_reason[:_LONGEST_REASON]),
        Score(row, "precision", marks.precision, sample, marks.precision_reason[:_LONGEST_REASON]),
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
                scores[row.row, sample] = _abstain(row.row, sample, "there is no answer to mark")
            elif not text.strip():
                scores[row.row, sample] = [
                    Score(row.row, metric, 0.0, sample, "the answer is empty") for metric in METRICS
                ]
            else:
                asked.append((row.row, sample, judge_call(row, text, task)))
    answers = await client.ask_all([call for _, _, call in asked], task.spec.budgets)
    _raise_what_ends_the_shard(answers)
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
        return await judge(rows, task, client)

    return Evaluator(
        name=NAME,
        version=f"1-{hashlib.sha256(_PROMPT.encode()).hexdigest()[:8]}",
        metrics={metric: MetricRange(low=0, high=100) for metric in METRICS},
        score=score,
        cost_per_row="one service LLM call an answer",
        noisy=True,
    )


def _abstain(row: str, sample: int, reason: str) -> list[Score]:
    return [Score(row, metric, None, sample, reason[:_LONGEST_REASON]) for metric in METRICS]


def _raise_what_ends_the_shard(answers: Sequence[Answer | LlamaDuoError]) -> None:
    errors = [answer for answer in answers if isinstance(answer, LlamaDuoError)]
    for error in errors:
        if isinstance(error, BudgetExhausted):
            raise error
    for error in errors:
        if not isinstance(error, ServiceLLMRefused):
            raise error
    if errors and len(errors) == len(answers):
        raise errors[0]
