"""Nothing is bought twice without a kill, and what may have been is listed."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.bus.kv import Entry, KeyValue
from llamaduo.errors import BudgetExhausted, RetryableError
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Answer, Reply, SendFailed, count_calls, rebought
from llamaduo.service_llm.budget import spent
from llamaduo.service_llm.ledger import LedgerEntry
from tests.unit.service_llm_fakes import (
    FREE,
    LLM,
    Buckets,
    FakeProvider,
    Fuse,
    Killed,
    LossyKeyValue,
    MortalKeyValue,
    VirtualClock,
    call,
    outcome,
    quiet,
    together,
)


async def test_an_answer_is_bought_once_and_then_read() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock)
    client = buckets.client(provider, clock)
    first = await clock.run(client.ask(call(), FREE))
    again = await clock.run(client.ask(call(), FREE))
    other = await clock.run(client.ask(call(job="job-2", migration="m2"), FREE))
    assert first.text == again.text == other.text == "re: hello"
    assert provider.paid.total() == 1
    assert (first.from_ledger, first.own) == (False, True)
    assert (again.from_ledger, again.own) == (True, True)
    assert (other.from_ledger, other.own) == (True, False)
    assert (first.began, first.ended) == (again.began, again.ended)


async def test_the_answer_is_in_the_ledger_before_it_is_used_and_intended_before_it_is_sent() -> None:
    clock, buckets = VirtualClock(), Buckets()
    seen: list[LedgerEntry] = []

    def reply(asked: object) -> Reply:
        entry = buckets.ledger._entries[call().key]
        seen.append(LedgerEntry.model_validate_json(entry.value))
        return Reply("yes", "stop", 1, 1)

    answer = await clock.run(buckets.client(FakeProvider(clock, reply=reply), clock).ask(call(), FREE))
    [intended] = seen
    assert [one.outcome for one in intended.attempts] == ["open"]
    assert (intended.attempts[0].job, intended.attempts[0].replica) == ("job-1", "a")
    assert intended.answer is None
    stored = await buckets.ledger.get(call().key)
    assert stored is not None
    written = LedgerEntry.model_validate_json(stored.value)
    assert written.answer is not None and written.answer.text == answer.text
    assert written.attempts[0].outcome == "answered"


async def test_equal_calls_at_once_are_one_purchase_also_between_replicas() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=3)
    one, two = buckets.client(provider, clock, replica="a"), buckets.client(provider, clock, replica="b")
    answers = await clock.run(
        together(
            [
                one.ask(call(job="job-1"), FREE),
                one.ask(call(job="job-2"), FREE),
                two.ask(call(job="job-3"), FREE),
            ]
        )
    )
    assert provider.paid.total() == 1
    assert [answer.own for answer in answers].count(True) == 1
    assert await rebought(buckets.ledger, "m1") == []


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    texts=st.lists(st.integers(0, 6), min_size=1, max_size=25),
    replicas=st.integers(1, 3),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
)
def test_no_key_is_sent_twice_however_replicas_and_a_shaky_store_interleave(
    seed: int, texts: list[int], replicas: int, loss: float
) -> None:
    async def scenario() -> None:
        clock, buckets = VirtualClock(), Buckets()
        provider = FakeProvider(clock, latency=0.5)
        clients = [
            buckets.client(
                provider,
                clock,
                replica=f"r{number}",
                wrap=lambda kv, number=number: LossyKeyValue(kv, seed + number, loss),  # type: ignore[misc]
            )
            for number in range(replicas)
        ]
        asks = [
            clients[index % replicas].ask(call(f"t{text}", job=f"job-{index}"), Budgets(calls=1000))
            for index, text in enumerate(texts)
        ]
        answers = await clock.run(together(asks))
        assert provider.paid == Counter({call(f"t{text}").key: 1 for text in texts})
        assert sum(answer.own for answer in answers) == len(set(texts))
        assert await rebought(buckets.ledger, "m1") == []
        record = await spent(buckets.budget, "m1")
        assert (record.settled.calls, record.held) == (len(set(texts)), {})

    asyncio.run(scenario())


async def test_a_kill_in_flight_is_bought_again_and_listed() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=10)
    doomed = asyncio.ensure_future(buckets.client(provider, clock, replica="a").ask(call(purpose="judge"), FREE))
    await quiet()
    assert len(provider.sends) == 1
    await _kill_everything_but_this()
    assert doomed.done()

    again = await clock.run(buckets.client(provider, clock, replica="b").ask(call(purpose="judge"), FREE))
    assert (again.rebought, again.from_ledger, again.own) == (True, False, True)
    [listed] = await rebought(buckets.ledger, "m1")
    assert (listed.key, listed.purpose, listed.job, listed.attempt, listed.replica) == (
        call().key,
        "judge",
        "job-1",
        2,
        "b",
    )
    assert await rebought(buckets.ledger, "m2") == []
    assert count_calls([again]).rebought == 1


async def test_other_work_waits_for_a_call_under_way_and_takes_it_over_when_its_time_is_up() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"timeout_s": 20})
    provider = FakeProvider(clock, latency=10)
    task = asyncio.ensure_future(buckets.client(provider, clock).ask(call(llm=llm), FREE))
    await quiet()
    await _kill_everything_but_this()
    assert task.done()
    killed_at = clock.now()
    answer = await clock.run(buckets.client(provider, clock, replica="b").ask(call(job="job-2", llm=llm), FREE))
    assert answer.rebought
    assert 50 <= clock.now() - killed_at < 65


async def test_what_a_process_left_open_is_no_matter_to_the_one_that_follows_it_under_its_name() -> None:
    """Started again, it may well take up other work first, which asks the same: nobody will ever answer it."""
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=10)
    task = asyncio.ensure_future(buckets.client(provider, clock, replica="a").ask(call(), FREE))
    await quiet()
    await _kill_everything_but_this()
    assert task.done()
    killed_at = clock.now()
    answer = await clock.run(buckets.client(provider, clock, replica="a").ask(call(job="job-2"), FREE))
    assert answer.rebought and answer.own
    assert clock.now() - killed_at < 11
    assert len(await rebought(buckets.ledger, "m1")) == 1


@settings(max_examples=60, deadline=None)
@given(fuse=st.integers(0, 60), number=st.integers(1, 4), latency=st.sampled_from([0.0, 1.0]))
def test_killed_at_any_step_the_books_balance(fuse: int, number: int, latency: float) -> None:
    async def scenario() -> None:
        clock, buckets = VirtualClock(), Buckets()
        provider = FakeProvider(clock, latency=latency)
        wire = Fuse(fuse)
        calls = [call(f"t{index}") for index in range(number)]
        budgets = Budgets(calls=100, tokens=100_000)
        doomed = buckets.client(provider, clock, wrap=lambda kv: MortalKeyValue(kv, wire))
        try:
            await clock.run(doomed.ask_all(calls, budgets))
        except (Killed, BaseExceptionGroup):
            await _kill_everything_but_this()
        answers = await clock.run(buckets.client(provider, clock, replica="b").ask_all(calls, budgets))

        assert all(isinstance(answer, Answer) for answer in answers)
        listed = {one.key for one in await rebought(buckets.ledger, "m1")}
        twice = {key for key, times in provider.paid.items() if times > 1}
        assert max(provider.paid.values()) <= 2
        assert twice <= listed
        counts = count_calls(answers)
        assert (counts.made, counts.rebought) == (number, len(listed))
        record = await spent(buckets.budget, "m1")
        assert record.held == {}
        assert provider.paid.total() <= record.settled.calls <= number + len(listed)
        assert record.settled.tokens == 15 * record.settled.calls

    asyncio.run(scenario())


async def test_a_cancelled_caller_does_not_lose_what_is_being_paid() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=5)
    client = buckets.client(provider, clock)
    asked = asyncio.ensure_future(client.ask(call(), FREE))
    await quiet()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await clock.run(client.close())
    with pytest.raises(RetryableError):
        await client.ask(call("another"), FREE)
    again = await clock.run(buckets.client(provider, clock, replica="b").ask(call(), FREE))
    assert (again.from_ledger, again.rebought, provider.paid.total()) == (True, False, 1)


async def test_a_cancelled_caller_sends_nothing_more() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: SendFailed("failed", "500"))
    client = buckets.client(provider, clock)
    asked = asyncio.ensure_future(client.ask(call(), FREE))
    await quiet()
    assert len(provider.sends) == 1
    asked.cancel()
    await quiet()
    clock.jump(1000)
    await clock.run(_nothing())
    assert len(provider.sends) == 1


async def test_a_cancelled_callers_failed_request_is_not_tried_again() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=5, reply=lambda _: SendFailed("failed", "500"))
    asked = asyncio.ensure_future(buckets.client(provider, clock).ask(call(), FREE))
    await quiet()
    asked.cancel()
    for _ in range(10):
        await clock.run(_sleep(clock, 30))
    assert len(provider.sends) == 1


async def test_an_owner_that_was_stopped_before_it_began_gives_back_nothing_of_its_successors() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider, budgets = FakeProvider(clock, latency=5), Budgets(calls=10)
    gate = Gate(buckets.ledger, gets=1)
    stale = buckets.client(provider, clock, wrap=lambda kv: gate if kv is buckets.ledger else kv)
    one = asyncio.ensure_future(stale.ask(call(), budgets))
    await quiet()
    assert len((await spent(buckets.budget, "m1")).held) == 1
    two = asyncio.ensure_future(buckets.client(provider, clock, replica="b").ask(call(), budgets))
    await quiet()
    gate.open.set()
    await quiet()
    assert len((await spent(buckets.budget, "m1")).held) == 1
    await clock.run(together([one, two]))
    record = await spent(buckets.budget, "m1")
    assert (record.held, record.settled.calls) == ({}, 2)


async def test_a_stopped_owner_that_comes_back_changes_no_answer() -> None:
    clock, buckets = VirtualClock(), Buckets()
    texts = iter(["the second's", "the first's"])
    slow = FakeProvider(clock, latency=50, reply=lambda _: Reply(next(texts), "stop", 1, 1))
    quick = FakeProvider(clock, latency=1, reply=lambda _: Reply(next(texts), "stop", 1, 1))
    stopped = asyncio.ensure_future(buckets.client(slow, clock, replica="a").ask(call(), FREE))
    await quiet()
    second = await clock.run(buckets.client(quick, clock, replica="b").ask(call(), FREE))
    first = await clock.run(stopped)
    assert first.text == second.text == "the second's"


async def test_a_refusal_at_the_door_of_one_migration_does_not_refuse_another() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=1)
    client = buckets.client(provider, clock)
    refused, answered = await clock.run(
        together(
            [
                outcome(client.ask(call(migration="m1"), Budgets(tokens=1))),
                outcome(client.ask(call(migration="m2", job="job-2"), FREE)),
            ]
        )
    )
    assert isinstance(refused, BudgetExhausted)
    assert isinstance(answered, Answer)


class Gate:
    """A bucket that lets so many reads through and then waits to be opened."""

    def __init__(self, inner: KeyValue, gets: int) -> None:
        self._inner, self._gets, self.open = inner, gets, asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        self._gets -= 1
        if self._gets < 0:
            await self.open.wait()
        return await self._inner.get(key)

    async def create(self, key: str, value: bytes) -> int:
        return await self._inner.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._inner.update(key, value, revision)

    async def keys(self, prefix: str) -> list[str]:
        return await self._inner.keys(prefix)


async def _sleep(clock: VirtualClock, seconds: float) -> None:
    await clock.sleep(seconds)


async def _nothing() -> None:
    await quiet()


async def _kill_everything_but_this() -> None:
    """What a kill leaves: no task of the process runs on, and none gets to write anything."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
