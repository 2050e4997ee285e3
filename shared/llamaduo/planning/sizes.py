"""How long prompts and answers are, in tokens, without a tokenizer: likely, and at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamaduo.datasets import Message, Row

BYTES_A_TOKEN = 4
"""Of English text; JSON and other languages have fewer."""
TOKENS_A_MESSAGE = 8
"""Role, and the marks around a message."""


@dataclass(frozen=True)
class Sizes:
    """Mean tokens of prompts and answers, the mean bytes of prompts and answers, and the longest of both."""

    prompt: float
    answer: float
    prompt_bytes: float
    answer_bytes: float
    longest_row: int
    longest_answer: int

    @property
    def row(self) -> float:
        """Mean tokens of a whole row."""
        return self.prompt + self.answer


def tokens(text: str) -> int:
    """About how many tokens this is."""
    return math.ceil(len(text.encode()) / BYTES_A_TOKEN)


def sizes_of(rows: Sequence[Row]) -> Sizes:
    """Of a dataset that has rows."""
    prompts = [_tokens(row.prompt) for row in rows]
    answers = [tokens(row.answer) + TOKENS_A_MESSAGE for row in rows]
    return Sizes(
        prompt=sum(prompts) / len(rows),
        answer=sum(answers) / len(rows),
        prompt_bytes=sum(len(m.content.encode()) for row in rows for m in row.prompt) / len(rows),
        answer_bytes=sum(len(row.answer.encode()) for row in rows) / len(rows),
        longest_row=max(prompt + answer for prompt, answer in zip(prompts, answers, strict=True)),
        longest_answer=max(answers),
    )


def _tokens(messages: Sequence[Message]) -> int:
    return sum(tokens(message.content) + TOKENS_A_MESSAGE for message in messages)
