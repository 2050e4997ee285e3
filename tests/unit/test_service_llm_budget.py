"""A budget is a hard stop, also with many calls in flight, and gives back what was not spent."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.errors import BudgetExhausted, RetryableError, ServiceLLMRefused
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Answer, Reply, SendFailed
from llamaduo.service_llm.budget import Amount, Door, spent
from llamaduo.service_llm.prices import largest, money
from tests.unit.service_llm_fakes import LLM, Buckets, FakeProvider, LossyKeyValue, VirtualClock, call, together


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 100),
    replicas=st.integers(1, 3),
    limit=st.integers(1, 60),
    seed=st.integers(0, 1000),
    loss=st.sampled_from([0.0, 0.1]),
)
def test_calls_and_tokens_are_never_overspent_with_all_in_flight(
    number: int, replicas: int, limit: int, seed: int, loss: float
) -> None:
    async def scenario() -> None:
        clock, buckets = VirtualClock(), Buckets()
        llm = LLM.model_copy(update={"concurrency": 100})
        largest_call = largest(call("t00", llm=llm)).tokens
        budgets = Budgets(calls=limit, tokens=largest_call * 20)
        provider = FakeProvider(clock, latency=1, reply=lambda _: Reply("x", "stop", largest_call - 20, 20))
        clients = [
            buckets.client(
                provider,
                clock,
                replica=f"r{index}",
                wrap=lambda kv, index=index: LossyKeyValue(kv, seed + index, loss),  # type: ignore[misc]
            )
            for index in range(replicas)
        ]
        calls = [call(f"t{index:02}", llm=llm, job=f"job-{index}") for index in range(number)]
        results = await clock.run(
            together([client.ask_all(calls[index::replicas], budgets) for index, client in enumerate(clients)])
        )
        assert provider.paid.total() == min(number, limit, 20)
        assert provider.tokens <= largest_call * 20
        refused = [one for result in results for one in result if not isinstance(one, Answer)]
        assert len(refused) == number - provider.paid.total()
        assert all(isinstance(one, BudgetExhausted) for one in refused)
        record = await spent(buckets.budget, "m1")
        assert record.held == {}
        assert (record.settled.calls, record.settled.tokens) == (provider.paid.total(), provider.tokens)

    asyncio.run(scenario())


async def test_money_is_held_at_its_largest_price_and_settled_at_the_real_one() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=1)
    most = largest(call()).money
    real = money(LLM, 10, 5)
    assert real is not None and 0 < real < most
    client = buckets.client(provider, clock)
    answer = await clock.run(client.ask(call(), Budgets(money=most)))
    assert answer.money == pytest.approx(real)
    assert (await spent(buckets.budget, "m1")).settled.money == pytest.approx(real)
    with pytest.raises(BudgetExhausted) as refused:
        await clock.run(client.ask(call("another"), Budgets(money=most)))
    assert (refused.value.what, refused.value.limit) == ("money", most)
    assert refused.value.spent == pytest.approx(real)
    assert len(provider.sends) == 1


async def test_a_dollar_is_not_passed_and_nearly_used_with_a_hundred_calls_in_flight() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"concurrency": 50})
    rng, dear = random.Random(7), 1_000
    most = largest(call("t0000", llm=llm, max_tokens=dear)).money

    def reply(_asked: object) -> Reply:
        return Reply("x", "stop", rng.randint(1, 20), rng.randint(1, 1_000))

    provider = FakeProvider(clock, latency=3, reply=reply)
    clients = [buckets.client(provider, clock, replica=name) for name in "ab"]
    calls = [call(f"t{n:04}", llm=llm, job=f"job-{n % 2}", max_tokens=dear) for n in range(400)]
    work = [client.ask_all(calls[index::2], Budgets(money=1.0)) for index, client in enumerate(clients)]
    results = await clock.run(together(work))
    paid = sum(one.money for result in results for one in result if isinstance(one, Answer))
    assert provider.most_in_flight > 80
    assert 1.0 - most <= paid <= 1.0
    assert (await spent(buckets.budget, "m1")).settled.money == pytest.approx(paid)


async def test_an_exhausted_budget_stops_the_rest_and_keeps_what_was_answered() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=1)
    llm = LLM.model_copy(update={"concurrency": 2})
    calls = [call(f"t{index}", llm=llm) for index in range(10)]
    results = await clock.run(buckets.client(provider, clock).ask_all(calls, Budgets(calls=3)))
    assert [isinstance(one, Answer) for one in results] == [True] * 3 + [False] * 7
    assert len(provider.sends) == 3


async def test_a_limit_that_only_holds_would_pass_is_waited_for() -> None:
    """Three calls fit at their real price, and not at their largest."""
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=1)
    real, most = money(LLM, 10, 5), largest(call()).money
    assert real is not None
    limit = most + 2 * real
    assert limit < 3 * most
    llm = LLM.model_copy(update={"concurrency": 3})
    calls = [call(f"t{index}", llm=llm) for index in range(3)]
    results = await clock.run(buckets.client(provider, clock).ask_all(calls, Budgets(money=limit)))
    assert all(isinstance(one, Answer) for one in results)
    assert provider.paid.total() == 3


async def test_a_hold_that_nobody_settles_is_not_waited_for_for_ever() -> None:
    clock, buckets = VirtualClock(start=0), Buckets()
    await Door(buckets.budget, clock).hold("m1", Budgets(calls=1), "left by a kill", Amount(calls=1))
    with pytest.raises(BudgetExhausted) as refused:
        await clock.run(buckets.client(FakeProvider(clock), clock).ask(call(), Budgets(calls=1)))
    assert refused.value.spent == 1
    assert LLM.timeout_s <= clock.now() <= 2 * LLM.timeout_s


async def test_calls_that_were_not_paid_are_given_back() -> None:
    clock, buckets = VirtualClock(), Buckets()
    budgets = Budgets(calls=2)
    outcomes = iter([SendFailed("failed", "500"), SendFailed("limited", "429", 1.0), SendFailed("refused", "400")])
    provider = FakeProvider(clock, reply=lambda _: next(outcomes))
    with pytest.raises(ServiceLLMRefused):
        await clock.run(buckets.client(provider, clock).ask(call(), budgets))
    record = await spent(buckets.budget, "m1")
    assert (record.settled, record.held) == (Amount(), {})


async def test_a_timeout_may_have_been_paid_and_stays_counted() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: SendFailed("unknown", "timed out"))
    with pytest.raises(RetryableError):
        await clock.run(buckets.client(provider, clock, max_tries=2).ask(call(), Budgets(calls=10)))
    assert (await spent(buckets.budget, "m1")).total().calls == 2

    answered = FakeProvider(clock)
    await clock.run(buckets.client(answered, clock).ask(call(), Budgets(calls=10)))
    record = await spent(buckets.budget, "m1")
    assert record.held == {}
    assert (record.settled.calls, record.settled.tokens) == (3, 45)
    assert record.settled.money == pytest.approx(3 * (money(LLM, 10, 5) or 0))


async def test_holding_and_settling_again_changes_nothing() -> None:
    clock, buckets = VirtualClock(), Buckets()
    door, budgets, one = Door(buckets.budget, clock), Budgets(calls=1), Amount(calls=1, tokens=7)
    await door.hold("m", budgets, "k.1", one)
    await door.hold("m", budgets, "k.1", one)
    for _ in range(2):
        await door.settle("m", budgets, ["k.1"], one)
    assert (await spent(buckets.budget, "m")).model_dump() == {"settled": one.model_dump(), "held": {}}


async def test_a_migration_without_limits_costs_no_record() -> None:
    clock, buckets = VirtualClock(), Buckets()
    await clock.run(buckets.client(FakeProvider(clock), clock).ask(call(), Budgets()))
    assert await buckets.budget.keys("") == []
