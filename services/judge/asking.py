"""Asking a service LLM to judge: the call, and which of its failures end a shard."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from llamaduo.errors import BudgetExhausted, LlamaDuoError, ServiceLLMRefused
from llamaduo.evaluators import Score, Task
from llamaduo.identity import seed_of
from llamaduo.service_llm import Answer, Call, count_calls

MAX_TOKENS = 1024
LONGEST_REASON = 400


def judging_call(what: str, row: str, messages: list[dict[str, str]], schema: type[BaseModel], task: Task) -> Call:
    """The one call that judges `what`. Equal messages are one call: it is bought once a repeat."""
    llm = task.spec.judge_llm
    return Call(
        messages=messages,
        llm=llm,
        migration=task.migration,
        job=task.job,
        purpose=what,
        schema=schema,
        max_tokens=MAX_TOKENS,
        temperature=llm.temperature if llm.temperature is not None else 0.0,
        seed=seed_of(what, row, task.repeat),
        sample=task.repeat,
    )


def abstained(metrics: Sequence[str], row: str, sample: int, reason: str) -> list[Score]:
    """No mark by any of these metrics, and why."""
    return [Score(row, metric, None, sample, reason[:LONGEST_REASON]) for metric in metrics]


def raise_what_ends_the_shard(answers: Sequence[Answer | LlamaDuoError]) -> None:
    """A budget, a provider that is down, and a refusal of every call: a wrong key is no mark."""
    errors = [answer for answer in answers if isinstance(answer, LlamaDuoError)]
    ends: list[LlamaDuoError] = [error for error in errors if isinstance(error, BudgetExhausted)]
    ends += [error for error in errors if not isinstance(error, ServiceLLMRefused)]
    ends += errors if len(errors) == len(answers) else []
    if ends:
        ends[0].calls = count_calls(answers)
        raise ends[0]
