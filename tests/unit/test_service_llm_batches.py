"""Batches: half the price, nothing bought twice, whatever is killed, late, lost or refused."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.errors import BudgetExhausted, LlamaDuoError, ProviderDown, RetryableError, ServiceLLMRefused
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Answer, Call, Reply, SendFailed, count_calls, prices, rebought
from llamaduo.service_llm.budget import spent
from llamaduo.service_llm.ledger import LedgerEntry
from llamaduo.service_llm.sending_batches import BatchLook
from tests.unit.service_llm_fakes import (
    FREE,
    LLM,
    Buckets,
    FakeBatches,
    FakeProvider,
    Fuse,
    Killed,
    MortalKeyValue,
    VirtualClock,
    call,
    quiet,
    together,
)

BATCHED = ServiceLLM.model_validate({**LLM.model_dump(), "batch": True})
ONLINE_PRICE = prices.money(LLM, 10, 5) or 0.0


def asked(number: int, *, job: str = "job-1", **more: Any) -> list[Call]:
    return [call(f"t{index}", job=job, llm=BATCHED, **more) for index in range(number)]


def answers_of(results: list[Answer | LlamaDuoError]) -> list[Answer]:
    answers = [one for one in results if isinstance(one, Answer)]
    assert len(answers) == len(results), results
    return answers


async def kill_everything_but_this() -> None:
    """The process dies: none of its tasks does anything more."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_batch_is_no_part_of_what_is_asked_and_a_spec_without_one_is_as_before() -> None:
    assert call(llm=BATCHED).key == call(llm=LLM).key
    assert "batch" not in LLM.model_dump(mode="json")
    assert ServiceLLM.model_validate({**LLM.model_dump(), "batch": False}) == LLM
    assert BATCHED.batch is not None and BATCHED.batch.price_factor == 0.5


async def test_the_calls_of_one_job_are_one_batch_at_half_the_price() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider, batches = FakeProvider(clock), FakeBatches(clock)
    told: list[tuple[str, int]] = []

    async def tell(of: Call, look: BatchLook, name: str) -> None:
        assert of.migration == "m1"
        told.append((name, look.done))

    client = buckets.client(provider, clock, batches=batches, tell=tell)
    results = await clock.run(client.ask_all([*asked(5), *asked(2)], FREE))
    answers = answers_of(results)
    assert [one.text for one in answers] == [f"re: t{index}" for index in (0, 1, 2, 3, 4, 0, 1)]
    assert all(one.batched and one.own and not one.rebought for one in answers)
    assert provider.paid.total() == 0 and len(batches.sent) == 1 and len(batches.sent["batch_0"].calls) == 5
    assert ONLINE_PRICE and answers[0].money == pytest.approx(ONLINE_PRICE / 2)
    counts = count_calls(results)
    assert (counts.made, counts.batched, counts.failed) == (5, 5, 0)
    assert told[0] == ("batch_0", 0) and told[-1] == ("batch_0", 5)
    assert 10 <= len(told) <= 25  # ten minutes, looked at less and less often
    again = await clock.run(client.ask_all(asked(5, job="job-2"), FREE))
    assert len(batches.sent) == 1 and [one.own for one in answers_of(again)] == [False] * 5


async def test_a_call_is_held_and_written_down_before_its_batch_is_sent() -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock)
    budgets = Budgets(money=1)
    client = buckets.client(FakeProvider(clock), clock, batches=batches)
    task = asyncio.ensure_future(client.ask_all(asked(3), budgets))
    await quiet(400)
    assert len(batches.sent) == 1
    for one in asked(3):
        entry = LedgerEntry.model_validate_json(buckets.ledger._entries[one.key].value)
        [attempt] = entry.attempts
        assert (attempt.outcome, attempt.job) == ("open", "job-1") and attempt.until > clock.now() + 24 * 3600
    held = await spent(buckets.budget, "m1")
    most = prices.largest(asked(1)[0], batched=True)
    assert most.money == pytest.approx((prices.largest(asked(1)[0]).money) / 2)
    assert list(held.held.values()) == [most] * 3
    await clock.run(task)
    settled = await spent(buckets.budget, "m1")
    assert settled.held == {} and settled.settled.money == pytest.approx(3 * ONLINE_PRICE / 2)


@settings(max_examples=80, deadline=None)
@given(fuse=st.integers(0, 70), number=st.integers(1, 4), second=st.integers(0, 40))
def test_killed_at_any_step_nothing_is_bought_twice(fuse: int, number: int, second: int) -> None:
    """Two processes die in turn, at the provider's door too; the third one finds what they had under way."""

    async def scenario() -> None:
        clock, buckets = VirtualClock(), Buckets()
        provider, batches = FakeProvider(clock), FakeBatches(clock, takes=5)
        budgets = Budgets(calls=100, money=10)
        for steps in (fuse, second):
            wire = Fuse(steps)
            batches.fuse = wire
            doomed = buckets.client(
                provider, clock, wrap=functools.partial(MortalKeyValue, fuse=wire), batches=batches
            )
            try:
                await clock.run(doomed.ask_all(asked(number), budgets))
            except (Killed, BaseExceptionGroup):
                await kill_everything_but_this()
        batches.fuse = None
        results = await clock.run(buckets.client(provider, clock, batches=batches).ask_all(asked(number), budgets))
        assert all(one.batched and not one.rebought for one in answers_of(results))
        assert len(batches.sent) == 1
        assert set(batches.paid.values()) == {1} and len(batches.paid) == number and provider.paid.total() == 0
        assert await rebought(buckets.ledger, "m1") == []
        record = await spent(buckets.budget, "m1")
        assert record.held == {} and record.settled.calls == number
        assert record.settled.money == pytest.approx(number * ONLINE_PRICE / 2)
        under_way = await buckets.ledger.get("batches")
        assert under_way is not None and under_way.value == b"{}"

    asyncio.run(scenario())


async def test_what_a_batch_lacks_is_asked_online_and_counted() -> None:
    clock, buckets = VirtualClock(), Buckets()

    def fate(of: Call) -> Reply | SendFailed | None:
        text = of.messages[-1]["content"]
        if text == "t0":
            return None
        return SendFailed("failed", "500") if text == "t1" else Reply("from the batch", "stop", 10, 5)

    provider, batches = FakeProvider(clock), FakeBatches(clock, fate=fate)
    results = await clock.run(
        buckets.client(provider, clock, batches=batches).ask_all(asked(4), Budgets(money=1, calls=4))
    )
    assert [one.batched for one in answers_of(results)] == [False, False, True, True]
    assert set(provider.paid) == {one.key for one in asked(2)} and len(batches.sent) == 1
    counts = count_calls(results)
    assert (counts.made, counts.batched, counts.failed, counts.rebought) == (4, 2, 2, 0)
    record = await spent(buckets.budget, "m1")
    assert record.held == {} and record.settled.calls == 4
    assert [record.settled.money, counts.money] == pytest.approx([3 * ONLINE_PRICE] * 2)


async def test_a_batch_that_takes_too_long_is_cancelled_and_what_it_lacks_asked_online() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = ServiceLLM.model_validate({**LLM.model_dump(), "batch": {"wait_hours": 1}})
    provider, batches = FakeProvider(clock), FakeBatches(clock, takes=1e9)
    began = clock.now()
    results = await clock.run(
        buckets.client(provider, clock, batches=batches).ask_all([call("a", llm=llm), call("b", llm=llm)], FREE)
    )
    assert [one.batched for one in answers_of(results)] == [False, False]
    cancelled = batches.sent["batch_0"].cancelled
    assert cancelled is not None and 3600 <= cancelled - began <= 3661


async def test_a_batch_that_the_provider_lost_may_have_been_paid() -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock, look=lambda _seen: BatchLook("lost", True, 0, 0, 0, lost=True))
    results = await clock.run(buckets.client(FakeProvider(clock), clock, batches=batches).ask_all(asked(2), FREE))
    assert [one.rebought for one in answers_of(results)] == [True, True]
    assert len(await rebought(buckets.ledger, "m1")) == 2


@pytest.mark.parametrize("full", [True, False])
async def test_a_batch_that_is_not_taken_costs_nothing(full: bool) -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock, look=lambda seen: replace(seen, ended=True, rejected="no room today", full=full))
    client = buckets.client(FakeProvider(clock), clock, batches=batches)
    results = await clock.run(client.ask_all(asked(2), Budgets(money=1)))
    wanted = ProviderDown if full else ServiceLLMRefused
    assert all(isinstance(one, wanted) and "no room today" in str(one) for one in results)
    record = await spent(buckets.budget, "m1")
    assert record.held == {} and record.settled.calls == 0
    batches.look_so = lambda seen: seen
    again = await clock.run(client.ask_all(asked(2), Budgets(money=1)))
    assert all(one.batched for one in answers_of(again)) and len(batches.sent) == 2


async def test_a_batch_whose_sending_got_no_reply_is_found_and_not_sent_again() -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock)
    batches.start_failures = [(False, SendFailed("failed", "503")), (True, SendFailed("unknown", "cut off"))]
    results = await clock.run(buckets.client(FakeProvider(clock), clock, batches=batches).ask_all(asked(2), FREE))
    assert all(one.batched for one in answers_of(results)) and len(batches.sent) == 1


async def test_a_provider_that_stays_away_puts_the_work_off_and_one_that_refuses_ends_it() -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock)
    client = buckets.client(FakeProvider(clock), clock, batches=batches)
    batches.start_failures = [(False, SendFailed("failed", "503"))] * 6
    results = await clock.run(client.ask_all(asked(2), Budgets(calls=2)))
    assert all(isinstance(one, RetryableError) for one in results)
    batches.start_failures = [(False, SendFailed("refused", "takes no batches"))]
    results = await clock.run(client.ask_all(asked(2), Budgets(calls=2)))
    assert all(isinstance(one, ServiceLLMRefused) and "takes no batches" in str(one) for one in results)
    assert (await spent(buckets.budget, "m1")).held == {}


async def test_a_budget_too_small_for_all_is_used_in_several_batches_and_never_passed() -> None:
    clock, buckets = VirtualClock(), Buckets()
    calls = asked(6)
    each = prices.largest(calls[0], batched=True).money
    budgets = Budgets(money=2.5 * each + 4 * ONLINE_PRICE / 2)
    batches = FakeBatches(clock)
    totals: list[float] = []

    async def tell(_of: Call, _look: BatchLook, _name: str) -> None:
        totals.append((await spent(buckets.budget, "m1")).total().money)

    client = buckets.client(FakeProvider(clock), clock, batches=batches, tell=tell)
    results = await clock.run(client.ask_all(calls, budgets))
    assert all(one.batched for one in answers_of(results)) and len(batches.sent) >= 2
    assert budgets.money is not None and max(totals) <= budgets.money
    exhausted = await clock.run(client.ask_all(asked(3, job="job-2", sample=1), Budgets(money=each / 2)))
    assert all(isinstance(one, BudgetExhausted) for one in exhausted)


async def test_work_whose_calls_others_have_in_a_batch_waits_for_them() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider, batches = FakeProvider(clock), FakeBatches(clock)
    one = buckets.client(provider, clock, replica="a", batches=batches)
    two = buckets.client(provider, clock, replica="b", batches=batches)
    work = [one.ask_all(asked(3), FREE), one.ask_all(asked(3, job="job-2"), FREE)]
    work.append(two.ask_all([*asked(3, job="job-3"), call("new", job="job-3", llm=BATCHED)], FREE))
    for results in await clock.run(together(work)):
        answers_of(results)
    assert set(batches.paid.values()) == {1} and len(batches.paid) == 4 and provider.paid.total() == 0


@pytest.mark.parametrize("over", [True, False])
async def test_the_end_of_the_migration_cancels_its_batch_and_leaving_does_not(over: bool) -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches = FakeBatches(clock)
    ended = {"m1": False}
    client = buckets.client(FakeProvider(clock), clock, batches=batches, ended=lambda migration: ended[migration])
    task = asyncio.ensure_future(client.ask_all(asked(2), Budgets(money=1)))
    await quiet(400)
    assert len(batches.sent) == 1
    ended["m1"] = over
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await clock.run(task)
    record = await spent(buckets.budget, "m1")
    assert (batches.sent["batch_0"].cancelled is not None) == over
    assert (len(record.held), record.settled.calls) == ((0, 0) if over else (2, 0))


async def test_a_batch_of_a_migration_that_ended_while_nobody_had_it_in_hand_is_cancelled() -> None:
    clock, buckets = VirtualClock(), Buckets()
    batches, over = FakeBatches(clock, takes=1e9), set[str]()
    client = buckets.client(FakeProvider(clock), clock, batches=batches, ended=lambda migration: migration in over)
    for migration in ("m1", "m2"):
        doomed = asyncio.ensure_future(client.ask_all(asked(2, migration=migration, sample=int(migration[1])), FREE))
        await quiet(400)
        await kill_everything_but_this()
        assert doomed.done()
    assert len(batches.sent) == 2
    next_one = buckets.client(FakeProvider(clock), clock, batches=batches, ended=lambda migration: migration in over)
    await clock.run(next_one.cancel_left_batches())
    assert [one.cancelled is not None for one in batches.sent.values()] == [False, False]
    over.add("m1")
    for _ in range(2):
        await clock.run(next_one.cancel_left_batches())
    assert [one.cancelled is not None for one in batches.sent.values()] == [True, False]
    stored = await buckets.ledger.get("batches")
    assert stored is not None and b"m1" not in stored.value and b"m2" in stored.value
    # Other work that asks the same does not wait for what will never come.
    began = clock.now()
    same = asked(2, migration="m3", job="job-3", sample=1)
    again = await clock.run(buckets.client(FakeProvider(clock), clock, replica="b").ask(same[0], FREE))
    assert again.rebought and clock.now() == began


async def test_a_process_that_was_stopped_while_sending_gives_way_to_the_one_that_took_over() -> None:
    clock = VirtualClock()
    buckets, gate = Buckets(), asyncio.Event()

    class Stopped(FakeBatches):
        """Is stopped right before its batch goes out."""

        async def start(self, llm: ServiceLLM, tag: str, calls: object) -> str:
            await gate.wait()
            return await super().start(llm, tag, calls)  # type: ignore[arg-type]

    batches, stopped = FakeBatches(clock), Stopped(clock)
    stopped.sent, stopped.paid = batches.sent, batches.paid
    first = asyncio.ensure_future(buckets.client(FakeProvider(clock), clock, batches=stopped).ask_all(asked(2), FREE))
    await quiet(400)
    second = asyncio.ensure_future(
        buckets.client(FakeProvider(clock), clock, batches=batches).ask_all(asked(2), FREE)
    )
    await quiet(400)
    assert len(batches.sent) == 1
    gate.set()
    for results in await clock.run(together([first, second])):
        answers_of(results)
    assert batches.sent["batch_1"].cancelled is not None and batches.sent["batch_0"].cancelled is None
    assert set(batches.paid.values()) == {1}


async def test_calls_without_a_batch_never_touch_its_records() -> None:
    clock, buckets = VirtualClock(), Buckets()
    results = await clock.run(buckets.client(FakeProvider(clock), clock).ask_all([call("a"), call("b")], FREE))
    assert [one.batched for one in answers_of(results)] == [False, False]
    assert isinstance(buckets.ledger, MemoryKeyValue)
    assert await buckets.ledger.keys("batch.") == []
