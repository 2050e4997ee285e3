"""The rate limit holds in every window of a minute, whatever the replicas do."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.permits import Permits, rate_key
from tests.unit.service_llm_fakes import LossyKeyValue, VirtualClock, quiet, together


def llm(rate: int, **more: str) -> ServiceLLM:
    return ServiceLLM(model="openai:gpt-4o", requests_per_minute=rate, **more)


def most_in_a_minute(times: list[float]) -> int:
    times = sorted(times)
    return max(bisect_right(times, start + 60.0) - index for index, start in enumerate(times))


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
                await permits.take(llm(rate))
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
            await permits.take(llm(600))
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
    await one.take(llm(600))
    await one.hold(llm(600), 30)
    await clock.run(two.take(llm(600)))
    assert clock.now() - start >= 30
    await clock.run(one.take(llm(600)))
    assert 30 < clock.now() - start < 31


async def test_slots_taken_before_the_provider_asked_for_patience_are_given_up() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    permits = Permits(kv, clock)
    sent: list[float] = []

    async def caller() -> None:
        await permits.take(llm(600))
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
        await permits.take(llm(600))
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
