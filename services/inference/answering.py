"""From a shard of rows to requests, and from generations to what evaluators read."""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.datasets import Row, ShardRow
from llamaduo.events import ResponsesRequested
from llamaduo.identity import seed_of
from llamaduo.tool_calls import ToolWording, read_answer
from llamaduo.tools_by_template import asked_with
from services.inference.engine import Generation, GenerationRequest

TOO_LONG = "prompt and answer do not fit the model's window (LLAMADUO_MAX_LENGTH)"


def shard_of(rows: Sequence[Row], asked: ResponsesRequested) -> list[Row]:
    """The rows of the shard that is asked for."""
    return list(rows[asked.shard * asked.size : (asked.shard + 1) * asked.size])


def requests_for(
    rows: Sequence[Row], asked: ResponsesRequested, model: str | None, wording: ToolWording = "text"
) -> list[GenerationRequest]:
    """One request a row, tools in this wording; sampling seeds come from migration, candidate, row and sample."""
    said = [asked_with(row.prompt, row.tools, wording) for row in rows]
    return [
        GenerationRequest(
            row=row.id,
            messages=messages,
            model=model,
            k=asked.answers_per_prompt,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=[
                seed_of(asked.migration, asked.candidate.key, row.id, sample)
                for sample in range(asked.answers_per_prompt)
            ],
            reference=row.answer,
            options=further if row.response_format is None else {"response_format": row.response_format},
        )
        for row, (messages, further) in zip(rows, said, strict=True)
    ]


def shard_rows(rows: Sequence[Row], generations: Sequence[Generation]) -> list[ShardRow]:
    """What evaluators read, in the order of `rows`; a prompt that does not fit the model has no answer to mark."""
    return [
        ShardRow(
            row=row.id,
            messages=row.prompt,
            reference=row.answer,
            answers=[None if is_too_long(generation) else answer_of(row, text) for text in generation.answers],
            errors=[TOO_LONG] * len(generation.answers) if is_too_long(generation) else [],
            meta=row.meta,
            response_format=row.response_format,
            tools=row.tools,
        )
        for row, generation in zip(rows, generations, strict=True)
    ]


def answer_of(row: Row, text: str) -> str:
    """What a model answered as evaluators read it: calls of tools written as those of the reference are."""
    return read_answer(text).text if row.needs_tools else text


def is_too_long(generation: Generation) -> bool:
    """Whether prompt and answer did not fit the model's window."""
    return "prompt_too_long" in generation.finish_reasons


def answers_cut(generations: Sequence[Generation]) -> int:
    """How many answers ended at max_tokens."""
    return sum(generation.finish_reasons.count("length") for generation in generations)
