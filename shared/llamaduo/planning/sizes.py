"""How long prompts and answers are, in tokens, without a tokenizer: likely, and at most."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamaduo.datasets import Message, Row
from llamaduo.tools_in_words import in_words

BYTES_A_TOKEN = 4
"""Of English text; JSON and other languages have fewer."""
TOKENS_A_MESSAGE = 8
"""Role, and the marks around a message."""
MOST_TOKENS_A_MESSAGE, FORMS_A_REQUEST = 16, 2
"""As the door of the budget counts a request: these beside its bytes, and a response format so often."""


@dataclass(frozen=True)
class Sizes:
    """Mean tokens of prompts, answers and response formats, their mean bytes, and the longest of both.

    `request_most` is what the budget's door counts of a prompt with its format, in tokens.
    """

    prompt: float
    answer: float
    prompt_bytes: float
    answer_bytes: float
    form: float
    form_bytes: float
    request_most: float
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
    asked = [in_words(row.prompt, row.tools) for row in rows]
    prompts = [_tokens(prompt) for prompt in asked]
    answers = [tokens(row.answer) + TOKENS_A_MESSAGE for row in rows]
    forms = [json.dumps(row.response_format) if row.response_format is not None else "" for row in rows]
    prompt_bytes = sum(len(m.content.encode()) for prompt in asked for m in prompt) / len(rows)
    form_bytes = sum(map(len, forms)) / len(rows)
    messages = sum(map(len, asked)) / len(rows)
    return Sizes(
        prompt=sum(prompts) / len(rows),
        answer=sum(answers) / len(rows),
        prompt_bytes=prompt_bytes,
        answer_bytes=sum(len(row.answer.encode()) for row in rows) / len(rows),
        form=sum(map(tokens, forms)) / len(rows),
        form_bytes=form_bytes,
        request_most=prompt_bytes + MOST_TOKENS_A_MESSAGE * messages + FORMS_A_REQUEST * form_bytes,
        longest_row=max(prompt + answer for prompt, answer in zip(prompts, answers, strict=True)),
        longest_answer=max(answers),
    )


def _tokens(messages: Sequence[Message]) -> int:
    return sum(tokens(message.content) + TOKENS_A_MESSAGE for message in messages)
