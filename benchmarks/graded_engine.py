"""A model whose answers, JSON of four fields, earn marks of known mean and spread from a judge that counts fields."""

from __future__ import annotations

import json
import math
import random

from benchmarks.verdict import shape_of
from llamaduo.identity import seed_of
from services.inference.engine import Generation, GenerationRequest, InferenceEngine
from services.inference.fake_engine import FakeEngine

FIELDS = 4
WRONG = "wrong"
PREFIX = "graded-"
_ROUNDING = 1 / (6 * FIELDS**2)
"""What rounding a mark up or down by chance adds to its variance, on average."""


def fields_right(mean: float, spread: float, chance: random.Random) -> int:
    """How many of the four fields an answer has right: a Beta mark, rounded up or down so that the mean is kept."""
    narrower = math.sqrt(spread**2 - _ROUNDING)
    mark = FIELDS * chance.betavariate(*shape_of(mean, narrower))
    whole = math.floor(mark)
    return min(FIELDS, whole + (chance.random() < mark - whole))


def partly_right(reference: str, right: int, chance: random.Random) -> str:
    """The reference with so many of its fields left as they are."""
    record = json.loads(reference)
    for key in chance.sample(sorted(record), FIELDS - right):
        record[key] = WRONG
    return json.dumps(record)  # with spaces: not what the service LLM says, whose marks are bought for themselves


class GradedEngine(FakeEngine):
    """See `FakeEngine`; what an adapter was trained on has no influence."""

    def __init__(self, mean: float, spread: float) -> None:
        super().__init__()
        self._mean, self._spread = mean, spread

    def _answer(self, prompt: GenerationRequest) -> Generation:
        plain = super()._answer(prompt)
        if prompt.model is None or prompt.reference is None:
            return plain
        chance = random.Random(seed_of("graded", prompt.model, prompt.row))
        answer = partly_right(prompt.reference, fields_right(self._mean, self._spread, chance), chance)
        return Generation(
            row=plain.row,
            answers=[answer] * prompt.k,
            finish_reasons=plain.finish_reasons,
            prompt_tokens=plain.prompt_tokens,
            completion_tokens=plain.completion_tokens,
        )


def base_model(mean: float) -> str:
    """The name of a base model whose adapters earn this mean."""
    return f"{PREFIX}{mean:.2f}"


async def graded_engine(name: str, _rank: int, *, spread: float) -> InferenceEngine:
    """The engine for `base_model(mean)`."""
    return GradedEngine(float(name.removeprefix(PREFIX)), spread)
