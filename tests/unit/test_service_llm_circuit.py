"""A provider that is down is left alone, by all replicas together, and no work is lost over it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.errors import LlamaDuoError, NotYet, ProviderDown, RetryableError, ServiceLLMRefused
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Answer, Call, Reply, SendFailed, rebought
from llamaduo.service_llm.budget import spent
from llamaduo.service_llm.pace import Pace
from llamaduo.service_llm.permits import FAILURES_IN_A_ROW, Permits, rate_key
from tests.unit.service_llm_fakes import (
    FREE,
    LLM,
    Buckets,
    FakeProvider,
    LossyKeyValue,
    VirtualClock,
    call,
    outcome,
    together,
)


def away(clock: VirtualClock, until: float, kind: str = "failed") -> Callable[[Call], Reply | SendFailed]:
    """A provider that is down until a moment."""
    start = clock.now()

    def reply(_asked: Call) -> Reply | SendFailed:
        return SendFailed(kind, "503") if clock.now() < start + until else Reply("ok", "stop", 10, 5)  # type: ignore[arg-type]

    return reply


@pytest.mark.parametrize("kind", ["failed", "unknown"])
async def test_a_provider_that_is_down_gets_one_probe_a_growing_pause_from_all_replicas(kind: str) -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=away(clock, 1e9, kind))
    clients = [buckets.client(provider, clock, replica=name) for name in "abcd"]
    calls = [call(f"t{n}", job=f"job-{n}") for n in range(40)]
    results = await clock.run(together([client.ask_all(calls[i::4], FREE) for i, client in enumerate(clients)]))
    errors = [one for result in results for one in result]
    assert all(isinstance(one, ProviderDown) for one in errors)
    first = provider.sends[0][0]
    probes = [at - first for at, _ in provider.sends if at - first > 4]
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert len(provider.sends) - len(probes) <= len(calls)
    assert [round(gap) for gap in gaps[:2]] == [10, 20]
    assert len(probes) == 3, "then nobody waits any longer"


async def test_nothing_is_lost_in_an_outage_and_no_try_of_a_job_is_counted() -> None:
    """A job that comes again after each put-off, as the bus would have it, gets all its answers in the end."""
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=0.5, reply=away(clock, 2_000))
    client, budgets = buckets.client(provider, clock), Budgets(calls=1_000)
    calls = [call(f"t{n}") for n in range(30)]
    put_off: list[LlamaDuoError] = []
    while True:
        results = await clock.run(client.ask_all(calls, budgets))
        errors = [one for one in results if isinstance(one, LlamaDuoError)]
        if not errors:
            break
        put_off += errors
        assert all(isinstance(one, NotYet) and one.delay > 0 for one in errors)
        clock.jump(min(one.delay for one in errors if isinstance(one, RetryableError)))
    assert put_off
    assert provider.paid.total() == len(calls)
    back = next(at for at, _ in provider.sends if at >= 1_002_000)
    assert back < 1_002_000 + 300 + 1, "an end of the outage is noticed within the longest pause"
    wasted = len(provider.sends) - len(calls)
    assert wasted < len(calls) + 15
    assert await rebought(buckets.ledger, "m1") == []
    record = await spent(buckets.budget, "m1")
    assert (record.settled.calls, record.held) == (len(calls), {})


async def test_a_short_outage_is_waited_out_in_place() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=0.5, reply=away(clock, 12))
    results = await clock.run(buckets.client(provider, clock).ask_all([call(f"t{n}") for n in range(30)], FREE))
    assert all(isinstance(one, Answer) for one in results)
    assert len(provider.sends) <= 30 + 16 + 2


async def test_refusals_and_patience_asked_for_are_answers_of_a_provider_that_is_up() -> None:
    clock, buckets = VirtualClock(), Buckets()
    kinds = itertools.cycle(["failed", "failed", "failed", "failed", "refused", "failed", "failed", "limited"])

    def reply(_asked: Call) -> SendFailed:
        return SendFailed(next(kinds), "no", 0.1)  # type: ignore[arg-type]

    provider = FakeProvider(clock, reply=reply)
    client = buckets.client(provider, clock, max_tries=1)
    errors = [await clock.run(outcome(client.ask(call(f"t{n}"), FREE))) for n in range(80)]
    assert not any(isinstance(one, ProviderDown) for one in errors)
    assert any(isinstance(one, ServiceLLMRefused) for one in errors)
    entry = await buckets.permits.get(rate_key(LLM))
    assert entry is not None and Pace.model_validate_json(entry.value).trips == 0


async def test_other_providers_and_other_keys_go_on() -> None:
    clock, buckets = VirtualClock(), Buckets()
    other = LLM.model_copy(update={"api_key_env": "OTHER_KEY"})

    def reply(asked: Call) -> Reply | SendFailed:
        return SendFailed("failed", "503") if asked.llm is LLM else Reply("ok", "stop", 1, 1)

    client = buckets.client(FakeProvider(clock, reply=reply), clock)
    calls = [call(f"t{n} {llm.api_key_env}", llm=llm) for n in range(20) for llm in (LLM, other)]
    results = await clock.run(client.ask_all(calls, FREE))
    assert [isinstance(one, Answer) for one in results] == [False, True] * 20


async def test_a_probe_that_dies_with_its_process_is_followed_by_another() -> None:
    clock, kv = VirtualClock(), MemoryKeyValue()
    dead, alive = Permits(kv, clock), Permits(kv, clock)
    for _ in range(FAILURES_IN_A_ROW):
        await dead.failed(LLM, await clock.run(dead.take(LLM, 1)))
    assert (await clock.run(dead.take(LLM, 1))).probe == 1
    began = clock.now()
    with pytest.raises(ProviderDown) as put_off:
        await clock.run(alive.take(LLM, 1))
    assert 30 < clock.now() - began < 33
    assert put_off.value.delay < 33
    clock.jump(LLM.timeout_s + 30)
    assert (await clock.run(alive.take(LLM, 1))).probe == 1


async def test_a_probe_that_is_not_sent_after_all_leaves_the_place_to_another() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=away(clock, 4))
    client = buckets.client(provider, clock)
    permits = Permits(buckets.permits, clock)
    for _ in range(FAILURES_IN_A_ROW):
        await permits.failed(LLM, await clock.run(permits.take(LLM, 1)))
    refused = await clock.run(outcome(client.ask(call("too dear"), Budgets(tokens=1))))
    assert isinstance(refused, LlamaDuoError) and not provider.sends
    began = clock.now()
    assert isinstance(await clock.run(client.ask(call("cheap"), FREE)), Answer)
    assert clock.now() - began < 2


@settings(max_examples=25, deadline=None)
@given(
    replicas=st.integers(1, 4),
    outage=st.floats(0, 200),
    latency=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_however_a_shaky_store_interleaves_the_replicas_everybody_comes_back(
    replicas: int, outage: float, latency: float, seed: int
) -> None:
    async def scenario() -> None:
        clock, buckets = VirtualClock(), Buckets()
        start = clock.now()
        provider = FakeProvider(clock, latency=latency, reply=away(clock, outage))
        clients = [
            buckets.client(
                provider,
                clock,
                replica=f"r{index}",
                wrap=lambda kv, index=index: LossyKeyValue(kv, seed + index, 0.05),  # type: ignore[misc]
            )
            for index in range(replicas)
        ]

        async def job(number: int) -> Answer:
            while True:
                try:
                    return await clients[number % replicas].ask(call(f"t{number}", job=f"job-{number}"), FREE)
                except NotYet as error:
                    await clock.sleep(error.delay)

        await clock.run(together([job(number) for number in range(12)]))
        assert provider.paid.total() == 12
        assert clock.now() - start < 2 * outage + 60 + 20 * latency

    asyncio.run(scenario())
