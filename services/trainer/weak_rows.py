"""Which validation rows an adapter has not learnt. Runs in the training child process only: importing it loads torch.

A row counts as learnt where, given the right answer so far, the likeliest token is the right one at every step of
it: just then would greedy decoding answer it word for word. This takes one forward pass a row and no judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

IGNORED = -100
MOST = 300

AnswerLogits = Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
"""A batch -> logits (rows, columns, words) and labels (rows, columns) of the columns that hold answer tokens"""


def weak_rows(
    dataset: Any, rows: Sequence[str], batch_size: int, collate: Callable[[Any], Any], answer_logits: AnswerLogits
) -> list[tuple[str, float]]:
    """The rows of a tokenized dataset that were not learnt, with their loss in nats a token; the highest first,
    MOST at most. `rows` are their ids, in the dataset's order.
    """
    found: list[tuple[str, float]] = []
    for start in range(0, len(dataset), batch_size):
        part = dataset[start : start + batch_size]
        pairs = zip(part["input_ids"], part["labels"], strict=True)
        batch = collate([{"input_ids": ids, "labels": labels} for ids, labels in pairs])
        with torch.inference_mode():
            logits, labels = answer_logits(batch)
        learned = labels != IGNORED
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(labels)
        means = losses.sum(dim=1) / learned.sum(dim=1)
        missed = ((logits.argmax(dim=-1) != labels) & learned).any(dim=1)
        seen = zip(rows[start : start + batch_size], means.tolist(), missed.tolist(), strict=True)
        found += [(row, loss) for row, loss, miss in seen if miss]
    return sorted(found, key=lambda one: (-one[1], one[0]))[:MOST]
