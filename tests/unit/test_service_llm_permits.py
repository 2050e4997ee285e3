"""The rate limit holds in every window of a minute, whatever the replicas do."""

from __future__ import annotations

import asyncio
import itertools
import random
from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.permits import Permits, rate_key
from tests.unit.service_llm_fakes import LossyKeyValue, VirtualClock, quiet, together


def llm(rate: int, **more: Any) -> ServiceLLM:
    return ServiceLLM(**({"model": "openai:gpt-4o", "requests_per_minute": rate} | more))


def most_in_a_minute(times: list[float]) -> int:
    times = sorted(times)
    return max(bisect_right(times, start + 60.0) - index for index, start in enumerate(times))


def most_tokens_in_a_minute(sent: list[tuple[float, int]]) -> int:
    sent = sorted(sent)
    return max(sum(tokens for at, tokens in sent if start <= at <= start + 60.0) for start, _ in sent)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.integers(1, 900),
    replicas=st.integers(1, 4),
    callers=st.integers(1, 12),
    pauses=st.lists(st.floats(0, 40), min_size=1, max_size=6),
    stops=st.lists(st.floats(0.1, 90), max_size=3),
    seed=st.integers(0, 1000),
)
def test_never_more_than_the_rate_in_any_minute(
    rate: int, replicas: int, callers: int, pauses: list[float], stops: list[float], seed: int
) -> None:
    async def scenario() -> list[float]:
        clock, kv, sent = VirtualClock(), MemoryKeyValue(), list[float]()

        async def caller(permits: Permits, number: int) -> None:
            for turn in range(12):
                await clock.sleep(pauses[(number + turn) % len(pauses)])
                await permits.take(llm(rate), 100)
                sent.append(clock.now())

        async def stopper() -> None:
            for stop in stops:
                await clock.sleep(7)
                clock.jump(stop)

        everybody = [stopper()]
        for replica in range(replicas):
            permits = Permits(LossyKeyValue(kv, seed + replica, 0.02), clock)
            everybody += [caller(permits, number) for number in range(callers)]
        await clock.run(together(everybody))
        return sent

    sent = asyncio.run(scenario())
    assert len(sent) == replicas * callers * 12
    assert most_in_a_minute(sent) <= rate


async def test_the_rate_is_used_and_evenly() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    sent: list[float] = []

    async def caller(permits: Permits) -> None:
        for _ in range(30):
            await permits.take(llm(600), 100)
            sent.append(clock.now())

    replicas = [Permits(kv, clock), Permits(kv, clock)]
    await clock.run(together([caller(replicas[number % 2]) for number in range(20)]))
    assert len(sent) == 600
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert min(gaps) >= 0.1 and max(gaps) < 0.11
    assert sent[-1] - sent[0] < 62


async def test_a_provider_that_asks_for_patience_gets_it_from_all_replicas() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    one, two = Permits(kv, clock), Permits(kv, clock)
    start = clock.now()
    await one.take(llm(600), 100)
    await one.hold(llm(600), 30)
    await clock.run(two.take(llm(600), 100))
    assert clock.now() - start >= 30
    await clock.run(one.take(llm(600), 100))
    assert 30 < clock.now() - start < 31


async def test_slots_taken_before_the_provider_asked_for_patience_are_given_up() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    permits = Permits(kv, clock)
    sent: list[float] = []

    async def caller() -> None:
        await permits.take(llm(600), 100)
        sent.append(clock.now())
        if len(sent) == 3:
            await permits.hold(llm(600), 30)

    await clock.run(together([caller() for _ in range(20)]))
    assert sent[4] - sent[2] >= 29


async def test_slots_left_by_a_stopped_process_are_not_sent_in_a_burst() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    permits = Permits(kv, clock)
    sent: list[float] = []

    async def caller() -> None:
        await permits.take(llm(600), 100)
        sent.append(clock.now())

    tasks = [asyncio.ensure_future(caller()) for _ in range(20)]
    await quiet()
    clock.jump(300)
    await clock.run(together(tasks))
    late = [at for at in sent if at > sent[0] + 1]
    assert len(late) >= 18
    assert all(later - earlier >= 0.1 for earlier, later in itertools.pairwise(late))


def test_one_limit_for_one_key_at_one_server() -> None:
    assert rate_key(llm(1)) == rate_key(llm(2))
    assert rate_key(llm(1)) != rate_key(llm(1, base_url="http://localhost/v1"))
    assert rate_key(llm(1)) != rate_key(llm(1, api_key_env="OTHER_KEY"))
    assert rate_key(llm(1)) == rate_key(llm(1, model="openai:gpt-4o-mini", tokens_per_minute=9, concurrency=3))


@settings(max_examples=25, deadline=None)
@given(
    limit=st.integers(500, 20_000),
    replicas=st.integers(1, 4),
    callers=st.integers(1, 6),
    largest=st.integers(1, 5_000),
    overestimate=st.sampled_from([1, 2, 10]),
    latency=st.floats(0, 30),
    stops=st.lists(st.floats(0.1, 90), max_size=3),
    seed=st.integers(0, 1000),
)
def test_never_more_tokens_than_the_limit_in_any_minute(
    limit: int,
    replicas: int,
    callers: int,
    largest: int,
    overestimate: int,
    latency: float,
    stops: list[float],
    seed: int,
) -> None:
    """With calls of all sizes, slots not used, and what was not taken given back over a shaky store."""
    rng, largest = random.Random(seed), min(largest, limit)

    async def scenario() -> list[tuple[float, int]]:
        clock, kv, sent = VirtualClock(), MemoryKeyValue(), list[tuple[float, int]]()
        asked = llm(900, tokens_per_minute=limit)

        async def caller(permits: Permits) -> None:
            for _ in range(4):
                most = rng.randint(1, largest)
                slot = await permits.take(asked, most)
                if rng.random() < 0.1:
                    await permits.unused(asked, slot)
                    continue
                took = max(1, most // overestimate)
                sent.append((clock.now(), took))
                await clock.sleep(latency * rng.random())
                await permits.answered(asked, slot, took)

        async def stopper() -> None:
            for stop in stops:
                await clock.sleep(7)
                clock.jump(stop)

        everybody = [stopper()]
        for replica in range(replicas):
            permits = Permits(LossyKeyValue(kv, seed + replica, 0.02), clock)
            everybody += [caller(permits) for _ in range(callers)]
        await clock.run(together(everybody))
        return sent

    sent = asyncio.run(scenario())
    assert len(sent) > 0
    assert most_tokens_in_a_minute(sent) <= limit


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize(("overestimate", "share"), [(1, 0.97), (4, 0.85)])
async def test_the_tokens_are_used_and_evenly(replicas: int, overestimate: int, share: float) -> None:
    """300 equal calls a minute; what a slot reserves and its call does not take is free once the call is answered."""
    clock, kv, sent = VirtualClock(), MemoryKeyValue(), list[float]()
    asked, start = llm(6_000, tokens_per_minute=30_000), clock.now()

    async def caller(permits: Permits) -> None:
        while clock.now() < start + 120:
            slot = await permits.take(asked, 100 * overestimate)
            sent.append(clock.now())
            await clock.sleep(0.5)
            await permits.answered(asked, slot, 100)

    permits = [Permits(kv, clock) for _ in range(replicas)]
    await clock.run(together([caller(permits[number % replicas]) for number in range(12)]))
    minute = [at for at in sent if start + 60 <= at < start + 120]
    assert share * 300 <= len(minute) <= 300
    assert most_in_a_minute(sent) <= 300
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert overestimate > 1 or (min(gaps) >= 0.2 and max(gaps) < 0.21)


async def test_a_call_larger_than_a_minutes_tokens_has_a_minute_of_its_own() -> None:
    clock = VirtualClock()
    permits = Permits(MemoryKeyValue(), clock)
    start, asked = clock.now(), llm(600, tokens_per_minute=1_000)
    for wanted in (10, 5_000, 10):
        await clock.run(permits.take(asked, wanted))
    assert 120 < clock.now() - start < 125
