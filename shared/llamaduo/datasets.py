"""Rows of a dataset: what one is, how a coverage file is read and checked, and how splits are stored.

The stored format is JSON lines, one row a line, canonical JSON, so equal rows give equal bytes. It needs no
data library: every service can read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamaduo.errors import UserInputError
from llamaduo.identity import canonical_json, content_digest, identity

MAX_ROW_BYTES = 1_000_000


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


def _row_from(raw: Any) -> Row:
    """One row from a parsed line in any of the accepted shapes. ValueError says what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError("a row is a JSON object")
    if "messages" in raw:
        messages = raw["messages"]
        known = {"messages"}
    elif "prompt" in raw and ("response" in raw or "completion" in raw):
        answer_key = "response" if "response" in raw else "completion"
        messages = [
            {"role": "user", "content": raw["prompt"]},
            {"role": "assistant", "content": raw[answer_key]},
        ]
        if raw.get("system"):
            messages.insert(0, {"role": "system", "content": raw["system"]})
        known = {"prompt", answer_key, "system"}
    else:
        raise ValueError("a row needs `messages`, or `prompt` and `response`")
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("`messages` needs at least a user message and the assistant's answer")
    try:
        parsed = [Message.model_validate(m) for m in messages]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"messages: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if parsed[-1].role != "assistant":
        raise ValueError("the last message must be the assistant's answer")
    if parsed[-2].role != "user":
        raise ValueError("the message before the answer must be the user's")
    return make_row(parsed, meta={k: v for k, v in raw.items() if k not in known and k != "id"})


def read_coverage(path: Path, *, limit_problems: int = 20) -> list[Row]:
    """Read and check a coverage dataset (JSON lines).

    Exact repeats are dropped. UserInputError lists the first bad lines, each with its number and reason.
    """
    if not path.is_file():
        raise UserInputError("no such file", file=str(path), field="coverage")
    rows: dict[str, Row] = {}
    problems: list[tuple[int, str]] = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_ROW_BYTES:
                raise ValueError(f"longer than {MAX_ROW_BYTES} bytes")
            row = _row_from(json.loads(line))
            rows.setdefault(row.id, row)
        except (ValueError, RecursionError) as error:
            problems.append((number, str(error)))
    if problems:
        shown = "; ".join(f"line {n}: {why}" for n, why in problems[:limit_problems])
        more = f"; and {len(problems) - limit_problems} more" if len(problems) > limit_problems else ""
        raise UserInputError(
            f"{len(problems)} bad rows: {shown}{more}", file=str(path), line=problems[0][0], field="coverage"
        )
    if not rows:
        raise UserInputError("holds no rows", file=str(path), field="coverage")
    return list(rows.values())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, start=1)
