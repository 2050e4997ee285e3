"""Rows of a dataset: what one is, and how splits are stored. `coverage_files` reads what a team wrote.

The stored format is JSON lines, one row a line, canonical JSON, so equal rows give equal bytes. It needs no
data library: every service can read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.identity import canonical_json, content_digest, identity


class Message(BaseModel):
    """One chat message of plain text."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Lineage(BaseModel):
    """Where a generated row came from: seed row ids, round, generator model, hash of the prompt."""

    model_config = ConfigDict(frozen=True)
    seeds: list[str]
    round: int
    generator: str
    prompt: str


class Row(BaseModel):
    """One prompt (all messages but the last) and its answer (the last, by the assistant)."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str
    messages: list[Message] = Field(min_length=2)
    source: Literal["coverage", "generated"] = "coverage"
    meta: dict[str, Any] = Field(default_factory=dict)
    lineage: Lineage | None = None

    @property
    def prompt(self) -> list[Message]:
        """The messages shown to a model."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The reference answer."""
        return self.messages[-1].content

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


def row_id(messages: Iterable[Message]) -> str:
    """A row's id: hash of its messages."""
    return identity("row", content_digest([m.model_dump() for m in messages]))[:24]


def make_row(messages: list[Message], **extra: Any) -> Row:
    """A row with the id of its content."""
    return Row(id=row_id(messages), messages=messages, **extra)


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
