"""Somebody else's evaluator: how near is an answer's length to the reference's?

llamaduo evaluator add same-length && python examples/same_length_evaluator.py
"""

from collections.abc import Sequence

from llamaduo.datasets import ShardRow
from llamaduo.evaluating import run_evaluator
from llamaduo.evaluators import Score, evaluator


@evaluator("same-length", metrics={"ratio": (0, 1)})
async def same_length(rows: Sequence[ShardRow]) -> list[Score]:
    scores = []
    for row in rows:
        for sample, answer in enumerate(row.answers):
            short, long = sorted((len(answer or ""), len(row.reference)))
            scores.append(Score(row.row, "ratio", short / long, sample, f"{short} of {long} characters"))
    return scores


if __name__ == "__main__":
    run_evaluator(same_length)
