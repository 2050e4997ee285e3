"""An engine without a model, for tests of faults: every answer follows from the row and the adapter alone.

An adapter's skill comes from the number of rows it was trained on, which the fake trainer writes into its weights'
header. More rows keep every right answer right, so two runs of a loop end alike however they were interrupted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence

from llamaduo.errors import AdapterRejected, RetryableError
from services.inference.adapter_check import WEIGHTS, digest_of
from services.inference.engine import AdapterFiles, EngineNotReady, Generation, GenerationRequest
from services.inference.safetensors_header import read_header

WRONG_ANSWER = '{"intent": "none", "urgency": 0}'


def skill_of(rows: int) -> float:
    """The share of prompts that an adapter trained on so many rows answers rightly."""
    return min(0.95, 0.30 + 0.004 * rows)


def is_answered(row: str, skill: float) -> bool:
    """Whether a prompt is among those that this skill answers; what a lower skill answers, a higher one does."""
    return int(hashlib.sha256(f"{row}\nfake engine".encode()).hexdigest()[:8], 16) / 2**32 < skill


class FakeEngine:
    """See `InferenceEngine`. `delay_s` is how long one prompt takes; the untrained base is always wrong.

    `skill` gives an adapter's share of right answers by the rows it was trained on.
    """

    base_url = ""

    def __init__(
        self, *, delay_s: float = 0.0, wrong_answer: str = WRONG_ANSWER, skill: Callable[[int], float] = skill_of
    ) -> None:
        self._delay_s, self._wrong_answer, self._skill_of = delay_s, wrong_answer, skill
        self._skills: dict[str, float] = {}
        self._started = False

    async def start(self) -> None:
        self._started = True

    async def stop(self) -> None:
        self._started = False

    def healthy(self) -> bool:
        return self._started

    async def metrics(self) -> str:
        return ""

    async def load(self, adapter: AdapterFiles) -> str:
        if digest_of(adapter.folder) != adapter.digest:
            raise AdapterRejected(f"adapter {adapter.name}: its files do not have its digest")
        try:
            rows = int(read_header(adapter.folder / WEIGHTS).metadata["rows"])
        except (OSError, KeyError, ValueError) as error:
            raise AdapterRejected(f"adapter {adapter.name}: not made by the fake trainer: {error}") from error
        self._skills[adapter.name] = self._skill_of(rows)
        return adapter.name

    def pin(self, names: frozenset[str]) -> None:
        """Nothing makes room here."""

    async def unload(self, name: str) -> None:
        self._skills.pop(name, None)

    async def generate(self, prompts: Sequence[GenerationRequest]) -> list[Generation]:
        if not self._started:
            raise EngineNotReady("the fake engine is not started")
        answers = []
        for prompt in prompts:
            await asyncio.sleep(self._delay_s)
            answers.append(self._answer(prompt))
        return answers

    def _answer(self, prompt: GenerationRequest) -> Generation:
        if prompt.model is not None and prompt.model not in self._skills:
            raise RetryableError(f"adapter {prompt.model} is not loaded here")
        skill = 0.0 if prompt.model is None else self._skills[prompt.model]
        right = prompt.reference is not None and is_answered(prompt.row, skill)
        answer = prompt.reference if right and prompt.reference is not None else self._wrong_answer
        words = sum(len(str(message.get("content", "")).split()) for message in prompt.messages)
        return Generation(
            row=prompt.row,
            answers=[answer] * prompt.k,
            finish_reasons=["stop"] * prompt.k,
            prompt_tokens=words * prompt.k,
            completion_tokens=len(answer.split()) * prompt.k,
        )
