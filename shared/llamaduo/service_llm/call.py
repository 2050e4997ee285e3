"""One question to a service LLM, and its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from llamaduo.errors import ServiceLLMRefused
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import ServiceLLM

KEY_PREFIX = "call."
_SAID, _CALLED = {"role", "content"}, {"role", "content", "tool_calls"}
_KEYS = {
    "system": (_SAID,),
    "user": (_SAID,),
    "assistant": (_SAID, _CALLED),
    "tool": ({"role", "content", "tool_call_id"},),
}
_MIGRATION = re.compile(r"[A-Za-z0-9_-]+")

FinishReason = Literal["stop", "length", "content_filter", "other"]
Shape = Literal["asked", "odd", "unreadable"]
"""A typed answer as it was asked for, otherwise but of use, or of none. Free text is always as asked."""


@dataclass(frozen=True)
class Call:
    """One request: what is asked, of which model, and for whose work.

    `messages` are `{"role": system|user|assistant, "content": text}` and end with a user message, or what a tool gave
    (`role: tool` with its `tool_call_id`, after an assistant's `tool_calls`: see `datasets.Message`). `schema` asks
    for typed output: the answer's text is then JSON of that shape, to be read with `parsing`. `response_format` is
    what a caller of OpenAI's API gives, passed on as it is where the provider speaks that. `tools` are what may be
    called, as OpenAI writes them; a call comes back as text (see `llamaduo.tool_calls`). `sample` tells otherwise
    equal calls apart that are each to be bought. `job` is the id of the event whose work this is.
    ValueError if the messages or the migration's id are unusable.
    """

    messages: Sequence[Mapping[str, Any]]
    llm: ServiceLLM
    migration: str
    job: str
    purpose: str = ""
    schema: type[BaseModel] | None = None
    max_tokens: int = 1024
    temperature: float | None = None
    seed: int | None = None
    sample: int = 0
    response_format: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if not _MIGRATION.fullmatch(self.migration):
            raise ValueError(f"a migration id is letters, digits, - and _; not {self.migration!r}")
        if not self.messages or self.messages[-1].get("role") not in ("user", "tool"):
            raise ValueError("messages must end with one of the user, or of a tool")
        if self.schema is not None and self.response_format is not None:
            raise ValueError("an answer has one form: a schema or a response format")
        if self.schema is not None and self.tools is not None:
            raise ValueError("typed output is asked for without tools")
        for message in self.messages:
            role = message.get("role")
            if set(message) not in _KEYS.get(role if isinstance(role, str) else "", ()):
                raise ValueError("a message has a role (system, user, assistant, tool) and a content")

    @property
    def warmth(self) -> float | None:
        """The temperature to send: the call's own, else the spec's; None leaves it to the provider."""
        return self.temperature if self.temperature is not None else self.llm.temperature

    @cached_property
    def key(self) -> str:
        """The ledger key: what is asked of which model. Where it is served, by which key and for whom is no part."""
        # Only where it is given, so that what was bought without it stays found.
        form: dict[str, Any] = {}
        if self.response_format is not None:
            form["response_format"] = dict(self.response_format)
        if self.tools is not None:
            form["tools"] = [dict(tool) for tool in self.tools]
        return KEY_PREFIX + content_digest(
            {
                **form,
                "model": self.llm.model,
                "messages": [dict(message) for message in self.messages],
                "schema": [self.schema.__name__, self.schema.model_json_schema()] if self.schema else None,
                "max_tokens": self.max_tokens,
                "temperature": self.warmth,
                "seed": self.seed,
                "sample": self.sample,
            }
        )


@dataclass(frozen=True)
class Answer:
    """What the service LLM said, and what it took.

    `from_ledger`: nothing was sent for this `ask`. `own`: it was bought for this call's job, now or before a kill, so
    the job's result counts its cost; an answer that other work had bought is not own. `rebought`: an earlier attempt
    of this job may have been paid as well. `failed` counts this job's attempts that brought no answer, `limited` the
    429s among them. `batched`: it came with a batch. `money` is US dollars, 0 where no price is known. `began` and
    `ended` enclose the one request that was answered, or its batch.
    """

    key: str
    text: str
    finish_reason: FinishReason
    shape: Shape
    input_tokens: int
    output_tokens: int
    money: float
    from_ledger: bool
    own: bool
    rebought: bool
    failed: int
    limited: int
    batched: bool
    began: datetime
    ended: datetime


class RefusedInWords(ServiceLLMRefused):
    """The provider answered that it will not answer; that is paid for, and `answer` says what it took."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer
