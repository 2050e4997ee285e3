"""The rows of a training run: reading them, and the order in which they are seen. No ML library is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llamaduo.datasets import Row
from llamaduo.tools_in_words import in_words
from services.trainer.engine import TrainingImpossible

# Batches that are length-sorted together: more saves padding, fewer mixes rows better.
WINDOW_BATCHES = 16


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON lines file, sorted by id, so that the order in the file has no influence.

    Raises TrainingImpossible, naming file and line, where a line is no row, or there is none.
    """
    rows: list[Row] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = Row.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                field = ".".join(map(str, first["loc"]))
                raise TrainingImpossible(f"{path}:{number}: {field}: {first['msg']}") from error
            if row.messages[-1].role != "assistant":
                raise TrainingImpossible(f"{path}:{number}: the last message must be the assistant's answer")
            rows.append(row)
    if not rows:
        raise TrainingImpossible(f"{path}: holds no rows")
    return sorted(rows, key=lambda row: row.id)


def in_plain_words(row: Row) -> list[dict[str, Any]]:
    """Its messages as inference asks with them, tools and calls in words."""
    return [message.model_dump() for message in in_words(row.messages, row.tools)]


def row_order(lengths: Sequence[int], batch_size: int, batches: int, seed: int) -> list[int]:
    """Indices into `lengths` (tokens a row) for `batches` full batches, as one list.

    All rows are seen once before any is seen again. Rows of like length share a batch, to save padding. The
    whole run is one list: a resumed run skips what it has seen, and the last batch is as full as the others,
    so that equal step counts mean equal numbers of rows, whatever the size of the data.
    """
    chance = random.Random(seed)  # noqa: S311 (an order, not a secret)
    stream: list[int] = []
    while len(stream) < batch_size * batches:
        once = list(range(len(lengths)))
        chance.shuffle(once)
        stream += once
    del stream[batch_size * batches :]

    # A window is never longer than one pass, lest a row meet itself in a batch.
    window = batch_size * max(1, min(WINDOW_BATCHES, len(lengths) // batch_size))
    order: list[int] = []
    for start in range(0, len(stream), window):
        part = sorted(stream[start : start + window], key=lambda index: -lengths[index])
        groups = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        chance.shuffle(groups)
        order += [index for group in groups for index in group]
    return order
