"""Rows of a dataset: what one is, and how splits are stored. `coverage_files` reads what a team wrote.

The stored format is JSON lines, one row a line, canonical JSON, so equal rows give equal bytes. It needs no
data library: every service can read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llamaduo.identity import canonical_json, content_digest, identity
from llamaduo.tool_calls import SaidAndCalled, call_of


def _is_none(value: object) -> bool:
    return value is None


def _if_there(description: str) -> Any:
    """A field that is not written where it is None: the ids and digests of rows that lack it must not change."""
    return Field(None, exclude_if=_is_none, description=description)


class Message(BaseModel):
    """One chat message of plain text; `content` is empty only where an assistant calls tools without a word."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[dict[str, Any]] | None = _if_there(
        "as OpenAI writes them, but for their arguments, which are objects"
    )
    tool_call_id: str | None = _if_there("of a tool's message: the call that it answers")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content and not self.tool_calls and self.role != "tool":
            raise ValueError("a message has a content, or calls tools")
        for call in self.tool_calls or ():
            if not isinstance(call.get("id"), str) or not isinstance(call.get("function"), dict):
                raise ValueError("a call of a tool has an `id` and a `function`")
            call_of(call)
        return self

    @property
    def text(self) -> str:
        """What a model writes to say this: the content, and the tool calls as one line of JSON without their ids."""
        return SaidAndCalled(self.content, tuple(map(call_of, self.tool_calls or ()))).text


class Lineage(BaseModel):
    """Where a generated row came from: seed row ids, round, generator model, hash of the prompt."""

    model_config = ConfigDict(frozen=True)
    seeds: list[str]
    round: int
    generator: str
    prompt: str


class Row(BaseModel):
    """One prompt (all messages but the last) and its answer (the last, by the assistant).

    `tools` and `response_format` are what the service LLM was given beside the messages, as OpenAI writes them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    messages: list[Message] = Field(min_length=2)
    source: Literal["coverage", "generated"] = "coverage"
    meta: dict[str, Any] = Field(default_factory=dict)
    lineage: Lineage | None = None
    tools: list[dict[str, Any]] | None = _if_there("the tools that may be called")
    response_format: dict[str, Any] | None = _if_there("the form that the answer must have")

    @property
    def prompt(self) -> list[Message]:
        """The messages shown to a model."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1].text

    @property
    def needs_tools(self) -> bool:
        """Whether tools are offered, or called anywhere in the conversation."""
        return bool(self.tools or self.messages[-1].tool_calls) or self.follows_a_tool

    @property
    def follows_a_tool(self) -> bool:
        """Whether the prompt holds calls of tools and what they gave."""
        return any(m.tool_calls or m.role == "tool" for m in self.prompt)

    @property
    def user_text(self) -> str:
        """All the user wrote, for similarity checks."""
        return "\n".join(m.content for m in self.messages if m.role == "user")


class ShardRow(BaseModel):
    """What an evaluator reads: the prompt, the reference and the answers of one candidate."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    row: str
    messages: list[Message]
    reference: str
    answers: list[str | None] = Field(description="one a sample; None where no answer could be had")
    errors: list[str] = Field(default_factory=list, description="why, for each missing answer")
    meta: dict[str, Any] = Field(default_factory=dict)
    response_format: dict[str, Any] | None = _if_there("the form that the answer was asked in")
    tools: list[dict[str, Any]] | None = _if_there("the tools that were offered")


def row_id(
    messages: Iterable[Message],
    tools: list[dict[str, Any]] | None = None,
    response_format: dict[str, Any] | None = None,
) -> str:
    """A row's id: hash of its messages, and of the tools and the response format where it has them."""
    said = [m.model_dump() for m in messages]
    beside = {"tools": tools, "response_format": response_format}
    given = {name: value for name, value in beside.items() if value is not None}
    return identity("row", content_digest({"messages": said, **given} if given else said))[:24]


def make_row(
    messages: list[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    response_format: dict[str, Any] | None = None,
    **extra: Any,
) -> Row:
    """A row with the id of its content."""
    number = row_id(messages, tools, response_format)
    return Row(id=number, messages=messages, tools=tools, response_format=response_format, **extra)


def dump_rows(rows: Iterable[Row | ShardRow]) -> bytes:
    """Rows as canonical JSON lines."""
    return "".join(canonical_json(r.model_dump(mode="json", exclude_none=True)) + "\n" for r in rows).encode()


def load_rows(body: bytes) -> list[Row]:
    """Rows of a stored split. ValueError where a line is no row."""
    return [Row.model_validate_json(line) for line in body.splitlines() if line.strip()]


def load_shard(body: bytes) -> list[ShardRow]:
    """Rows of a stored shard of answers. ValueError where a line is none."""
    return [ShardRow.model_validate_json(line) for line in body.splitlines() if line.strip()]


def dataset_digest(rows: Iterable[Row]) -> str:
    """Digest over the sorted content of rows: their order does not matter, times are not in it."""
    return content_digest(sorted(canonical_json(r.model_dump(mode="json")) for r in rows))


def merge_rows(*sets: Iterable[Row]) -> list[Row]:
    """All rows by id, each once, sorted by id: in whatever order and however often sets are merged, it is the same.

    Of two rows with one id the team's own wins over a generated one, else the one whose JSON comes first.
    """
    merged: dict[str, Row] = {}
    for row in (row for rows in sets for row in rows):
        merged[row.id] = min(merged.get(row.id, row), row, key=_precedence)
    return [merged[key] for key in sorted(merged)]


def _precedence(row: Row) -> tuple[bool, str]:
    return row.source != "coverage", canonical_json(row.model_dump(mode="json"))
