"""From a shard of rows to requests, and from generations to what evaluators read."""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.datasets import Row, ShardRow
from llamaduo.events import ResponsesRequested
from llamaduo.identity import seed_of
from services.inference.engine import Generation, GenerationRequest

TOO_LONG = "prompt and answer do not fit the model's window (LLAMADUO_MAX_LENGTH)"


def shard_of(rows: Sequence[Row], asked: ResponsesRequested) -> list[Row]:
    """The rows of the shard that is asked for."""
    return list(rows[asked.shard * asked.size : (asked.shard + 1) * asked.size])


def requests_for(rows: Sequence[Row], asked: ResponsesRequested, model: str | None) -> list[GenerationRequest]:
    """One request a row; sampling seeds come from migration, candidate, row and sample."""
    return [
        GenerationRequest(
            row=row.id,
            messages=[message.model_dump() for message in row.prompt],
            model=model,
            k=asked.answers_per_prompt,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=[
                seed_of(asked.migration, asked.candidate.key, row.id, sample)
                for sample in range(asked.answers_per_prompt)
            ],
            reference=row.answer,
        )
        for row in rows
    ]


def shard_rows(rows: Sequence[Row], generations: Sequence[Generation]) -> list[ShardRow]:
    """What evaluators read, in the order of `rows`; a prompt that does not fit the model has no answer to mark."""
    return [
        ShardRow(
            row=row.id,
            messages=row.prompt,
            reference=row.answer,
            answers=[None] * len(generation.answers) if is_too_long(generation) else list(generation.answers),
            errors=[TOO_LONG] * len(generation.answers) if is_too_long(generation) else [],
            meta=row.meta,
        )
        for row, generation in zip(rows, generations, strict=True)
    ]


def is_too_long(generation: Generation) -> bool:
    """Whether prompt and answer did not fit the model's window."""
    return "prompt_too_long" in generation.finish_reasons


def answers_cut(generations: Sequence[Generation]) -> int:
    """How many answers ended at max_tokens."""
    return sum(generation.finish_reasons.count("length") for generation in generations)
