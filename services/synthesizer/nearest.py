"""What no training at all gives: the answer of the train row whose prompt is most alike, copied."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import fuzz, process

from llamaduo.datasets import Row, ShardRow
from services.synthesizer.near_copies import COMPARED_CHARS, words_of


def nearest_rows(train: Sequence[Row], rows: Sequence[Row], samples: int = 1) -> list[ShardRow]:
    """The shard for the evaluators: each row with the answer of its nearest train row, `samples` times.

    Alike is the same words in any order; of equally near rows the one with the smallest id answers. Without train
    rows every answer is missing.
    """
    ordered = sorted(train, key=lambda row: row.id)
    texts = [_comparable(row) for row in ordered]
    shard = []
    for row in rows:
        best = process.extractOne(_comparable(row), texts, scorer=fuzz.token_sort_ratio)
        answer = None if best is None else ordered[best[2]].answer
        shard.append(
            ShardRow(
                row=row.id,
                messages=row.prompt,
                reference=row.answer,
                answers=[answer] * samples,
                errors=[] if answer is not None else ["there is no train row"] * samples,
                meta=row.meta,
                response_format=row.response_format,
                tools=row.tools,
            )
        )
    return shard


def _comparable(row: Row) -> str:
    return " ".join(words_of(row.user_text))[:COMPARED_CHARS]
