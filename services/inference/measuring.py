"""How fast an adapter answers where it is served: a burst of requests, so many in flight, each timed by itself."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamaduo.datasets import Row
from llamaduo.errors import LlamaDuoError
from llamaduo.events import ServingRequested
from llamaduo.identity import seed_of
from services.inference.answering import is_too_long
from services.inference.engine import Generation, GenerationRequest, InferenceEngine

MOST_SECONDS = 600.0
"""After so long no further request is sent: what is slower than that is told from fewer requests, or not at all."""


@dataclass
class Burst:
    """What was measured; times in seconds. `wall_s` is from the first request to the end of the last answer."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    too_long: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def take(self, generation: Generation, seconds: float) -> None:
        """One more answer; a prompt that does not fit is refused at once, and its time says nothing."""
        if is_too_long(generation):
            self.too_long += 1
            return
        self.seconds.append(round(seconds, 4))
        self.input_tokens += generation.prompt_tokens
        self.output_tokens += generation.completion_tokens


def burst_requests(rows: Sequence[Row], asked: ServingRequested, model: str) -> list[GenerationRequest]:
    """The requests of a burst, one answer each, over the rows again and again. ValueError without rows.

    The engine has answered these prompts before and may remember them, as it would not remember a user's: each pass
    over the rows has a cache of its own, in which what the prompts have in common is found as in real traffic.
    """
    if not rows:
        raise ValueError("there are no prompts to measure with")
    requests = []
    for number in range(asked.requests):
        turn, place = divmod(number, len(rows))
        row = rows[place]
        options: dict[str, Any] = {"cache_salt": f"{asked.id[:16]}-{turn}"}
        if row.response_format is not None:
            options |= {"response_format": row.response_format}
        requests.append(
            GenerationRequest(
                row=row.id,
                messages=[message.model_dump() for message in row.prompt],
                model=model,
                k=1,
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                seed=[seed_of(asked.migration, asked.candidate.key, row.id, turn)],
                reference=row.answer,
                options=options,
            )
        )
    return requests


def warm_up(requests: Sequence[GenerationRequest], concurrency: int) -> list[GenerationRequest]:
    """What to send first and not to count: an engine that has just loaded an adapter is slow at first."""
    return [
        replace(request, options={**request.options, "cache_salt": f"{request.options['cache_salt']}-warm-up"})
        for request in requests[:concurrency]
    ]


async def measure(
    engine: InferenceEngine,
    requests: Sequence[GenerationRequest],
    concurrency: int,
    *,
    most_s: float = MOST_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Burst:
    """Answer all requests, `concurrency` in flight. What the engine raises if any could not be answered now.

    A request's time is what a caller would wait: a place in the engine and the whole answer.
    """
    waiting, burst, began = deque(requests), Burst(), clock()

    async def one_after_another() -> None:
        while waiting and clock() - began < most_s:
            request, sent = waiting.popleft(), clock()
            (generation,) = await engine.generate([request])
            burst.take(generation, clock() - sent)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(requests))):
                group.create_task(one_after_another())
    except BaseExceptionGroup as errors:
        known = [error for error in errors.exceptions if isinstance(error, LlamaDuoError)]
        raise (known or errors.exceptions)[0] from errors
    burst.wall_s = round(clock() - began, 4)
    return burst
