"""What this service asks of a service LLM, and gets back. `teacher.py` asks a real one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, BeforeValidator, Field

from llamaduo.datasets import Message
from llamaduo.event_parts import CallCounts, WorkSpan


def _as_text(value: object) -> object:
    """Models often write an answer that is JSON as an object instead of a text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


class Pair(BaseModel):
    """One new example."""

    prompt: Annotated[str, BeforeValidator(_as_text)] = Field(description="what the user writes")
    answer: Annotated[str, BeforeValidator(_as_text)] = Field(description="the right answer to it, as text")


class Pairs(BaseModel):
    """The typed answer to a synthesis prompt."""

    pairs: list[Pair]


class PairCheck(BaseModel):
    """What a teacher says of one pair when it looks at it again."""

    number: int = Field(description="number of the pair")
    reason: str = Field("", description="a few words on what decides")
    keep: bool = Field(description="whether the pair is right")


class PairChecks(BaseModel):
    """The typed answer to a prompt that has pairs checked."""

    checks: list[PairCheck]


@dataclass(frozen=True)
class TeacherPrompt:
    """One call. `job` names it for the ledger; equal prompts with another `sample` are other calls.

    `output` is the form that we read; `response_format` and `tools` are what the row's own caller gave. A call of
    a tool comes back as text (see `llamaduo.tool_calls`).
    """

    job: str
    messages: list[Message]
    seed: int
    output: type[BaseModel] | None = None
    sample: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class TeacherAnswer:
    """The answer to one prompt: `text`, or `pairs` or `checks` where these were asked for; `error` says why
    there is none.
    """

    text: str | None = None
    pairs: list[Pair] = field(default_factory=list)
    checks: list[PairCheck] = field(default_factory=list)
    error: str = ""
    counts: CallCounts = field(default_factory=CallCounts)
    work: WorkSpan | None = None


class Teacher(Protocol):
    """Answers prompts, one answer each, in their order.

    A call that can never succeed is an answer with an `error`; what should be tried again later (a provider
    that is down, an exhausted budget) is raised, and the answers paid for so far come from the ledger next
    time.
    """

    async def ask(self, prompts: list[TeacherPrompt]) -> list[TeacherAnswer]:
        """Ask all of `prompts`."""
        ...


def total_counts(answers: Iterable[TeacherAnswer]) -> CallCounts:
    """The calls behind some answers."""
    return sum((answer.counts for answer in answers), CallCounts())


def joined_spans(answers: Sequence[TeacherAnswer]) -> list[WorkSpan]:
    """When the service LLM worked on some answers: overlapping times joined, in order of time."""
    joined: list[WorkSpan] = []
    for span in sorted((a.work for a in answers if a.work), key=lambda span: (span.began, span.ended)):
        if joined and span.began <= joined[-1].ended:
            ended = max(joined[-1].ended, span.ended)
            joined[-1] = joined[-1].model_copy(update={"ended": ended})
        else:
            joined.append(span)
    return joined
