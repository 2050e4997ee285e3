"""Rows with tools through a base model's own chat template: what is learnt is the model's own way to call one.

Needs no ML library: the tokenizer is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamaduo.datasets import Row
from llamaduo.tool_calls import read_answer
from llamaduo.tools_by_template import conversation, offered
from services.trainer.engine import TrainingImpossible

TokenizedRow = dict[str, list[int]]
"""`input_ids`, and `completion_mask` with 1 for the tokens of the answer."""

_OTHERWISE = "leave tool_wording out of the spec, and tools are put into words"


def tokenized(rows: Sequence[Row], tokenizer: Any) -> list[TokenizedRow]:
    """Each row as its template renders it with its tools.

    TRL would do the same, but a table of rows that call different tools gives every call the arguments of all.
    TrainingImpossible where the template shows no tools, or writes calls that we could not read in an answer.
    """
    return [_tokenized(row, tokenizer) for row in rows]


def _tokenized(row: Row, tokenizer: Any) -> TokenizedRow:
    messages = conversation(row.messages)
    prompt = _ids(tokenizer, messages[:-1], offered(row.tools), add_generation_prompt=True)
    whole = _ids(tokenizer, messages, offered(row.tools))
    begins = next(
        (at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(prompt)
    )
    if row.tools and whole == _ids(tokenizer, messages, None):
        raise TrainingImpossible(f"the base model's chat template does not render tools: {_OTHERWISE}")
    # As the server will write it: without the tokens that only steer.
    answer = tokenizer.decode(whole[begins:], skip_special_tokens=True)
    if row.messages[-1].tool_calls and read_answer(answer).calls != read_answer(row.answer).calls:
        raise TrainingImpossible(
            f"the base model's chat template writes calls in a way that is not read ({answer[:80]!r}): {_OTHERWISE}"
        )
    return {"input_ids": whole, "completion_mask": [0] * begins + [1] * (len(whole) - begins)}


def _ids(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: bool
) -> list[int]:
    try:
        rendered = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, **options)
    except Exception as error:  # a template is a program, and raises what it wants
        raise TrainingImpossible(f"the base model's chat template cannot render a row with tools: {error}") from error
    return list(rendered["input_ids"])
