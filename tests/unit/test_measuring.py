"""The burst: the adapter and nobody else, so many in flight, each request timed, none taken from a cache."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from llamaduo.datasets import Message, make_row
from llamaduo.errors import RetryableError
from llamaduo.event_parts import ArtifactRef, Candidate
from llamaduo.events import ServingRequested
from services.inference.engine import Generation, GenerationRequest
from services.inference.engines import EngineRoom
from services.inference.fake_engine import FakeEngine
from services.inference.measuring import burst_requests, measure, warm_up

ROWS = [
    make_row([Message(role="user", content=f"prompt {n}"), Message(role="assistant", content="answer")])
    for n in range(4)
]


def asked(requests: int, concurrency: int = 2) -> ServingRequested:
    return ServingRequested(
        migration="m-1",
        round=0,
        candidate=Candidate(kind="adapter", round=0),
        rows=ArtifactRef(uri="obj:x", sha256="0" * 64, size=1),
        requests=requests,
        concurrency=concurrency,
    )


class SlowEngine(FakeEngine):
    """Each request takes a second of its own clock; how many are in flight at once is counted."""

    def __init__(self, finish_reason: str = "stop", broken: bool = False) -> None:
        super().__init__()
        self.now, self.inside, self.most, self.models = 0.0, 0, 0, set[str | None]()
        self._reason, self._broken = finish_reason, broken

    async def generate(self, prompts: Sequence[GenerationRequest]) -> list[Generation]:
        if self._broken:
            raise RetryableError("vLLM is down")
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.models |= {prompt.model for prompt in prompts}
        # All that are in flight share a second: the first of them to go on lets it pass.
        before = self.now
        await asyncio.sleep(0)
        self.now = max(self.now, before + 1.0)
        self.inside -= 1
        return [Generation(prompt.row, ["x"], [self._reason], 5, 3) for prompt in prompts]


async def test_so_many_are_in_flight_and_each_is_timed() -> None:
    engine = SlowEngine()
    burst = await measure(engine, burst_requests(ROWS, asked(10), "adapter-1"), 2, clock=lambda: engine.now)
    assert engine.most == 2 and engine.models == {"adapter-1"}
    assert len(burst.seconds) == 10 and all(one >= 1.0 for one in burst.seconds)
    assert burst.wall_s == pytest.approx(5.0, abs=1.0)
    assert (burst.input_tokens, burst.output_tokens) == (50, 30)


async def test_a_prompt_that_does_not_fit_is_not_measured() -> None:
    burst = await measure(SlowEngine("prompt_too_long"), burst_requests(ROWS, asked(4), "a"), 2)
    assert (burst.seconds, burst.too_long, burst.output_tokens) == ([], 4, 0)


async def test_no_request_is_sent_after_the_longest_time() -> None:
    engine = SlowEngine()
    burst = await measure(engine, burst_requests(ROWS, asked(50), "a"), 2, most_s=3.0, clock=lambda: engine.now)
    assert 4 <= len(burst.seconds) < 12


async def test_an_engine_that_is_down_is_an_error_to_try_again() -> None:
    with pytest.raises(RetryableError, match="vLLM is down"):
        await measure(SlowEngine(broken=True), burst_requests(ROWS, asked(4), "a"), 2)


def test_each_pass_over_the_rows_and_the_warm_up_have_a_prefix_cache_of_their_own() -> None:
    requests = burst_requests(ROWS, asked(10), "a")
    assert [request.row for request in requests] == [ROWS[n % 4].id for n in range(10)]
    salts = [request.options["cache_salt"] for request in requests]
    assert len(set(salts)) == 3 and len(set(salts[:4])) == 1
    first = {request.options["cache_salt"] for request in warm_up(requests, 2)}
    assert len(first) == 1 and not first & set(salts)
    with pytest.raises(ValueError, match="no prompts"):
        burst_requests([], asked(1), "a")


async def test_alone_waits_for_others_and_keeps_them_out() -> None:
    async def make(base_model: str, rank: int) -> FakeEngine:
        return FakeEngine()

    room, told = EngineRoom(make), list[str]()
    may_leave, is_alone, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def shard(name: str, until: asyncio.Event | None = None) -> None:
        async with room.use("base", 1):
            told.append(f"{name} in")
            if until is not None:
                await until.wait()
            told.append(f"{name} out")

    async def burst() -> None:
        async with room.alone("base", 1):
            told.append("alone in")
            is_alone.set()
            await may_end.wait()
            told.append("alone out")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(shard("first", may_leave))
        while not told:
            await asyncio.sleep(0)
        group.create_task(burst())
        await asyncio.sleep(0)
        group.create_task(shard("second"))
        may_leave.set()
        await is_alone.wait()
        may_end.set()
    assert told == ["first in", "first out", "alone in", "alone out", "second in", "second out"]
