"""Retries, refusals, concurrency, and what a job's result says about its calls."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from datetime import timedelta

import pytest
from pydantic import BaseModel

from llamaduo.errors import PermanentError, RetryableError, ServiceLLMRefused, UserInputError
from llamaduo.event_parts import CallCounts
from llamaduo.service_llm import (
    Answer,
    Call,
    Mark100,
    Reply,
    SendFailed,
    ServiceLLMMisconfigured,
    count_calls,
    rebought,
    work_spans,
)
from llamaduo.service_llm.ledger import Ledger, LedgerEntry
from tests.unit.service_llm_fakes import FREE, LLM, Buckets, FakeProvider, LossyKeyValue, VirtualClock, call, together


async def test_patience_is_honoured_and_each_send_is_an_attempt() -> None:
    clock, buckets = VirtualClock(), Buckets()
    outcomes: Iterator[Reply | SendFailed] = iter(
        [SendFailed("limited", "429", 7.0), SendFailed("failed", "503"), Reply("ok", "stop", 1, 1)]
    )
    provider = FakeProvider(clock, reply=lambda _: next(outcomes))
    answer = await clock.run(buckets.client(provider, clock).ask(call(), FREE))
    first, second, third = (at for at, _ in provider.sends)
    assert 7.0 <= second - first < 7.5
    assert 0.5 <= third - second < 2.0
    assert {key for _, key in provider.sends} == {call().key}
    assert (answer.failed, answer.rebought) == (2, False)
    stored = await buckets.ledger.get(call().key)
    assert stored is not None
    attempts = LedgerEntry.model_validate_json(stored.value).attempts
    assert [(one.outcome, one.error) for one in attempts] == [("failed", "429"), ("failed", "503"), ("answered", "")]


async def test_backoff_is_the_same_when_a_test_is_run_again() -> None:
    async def times() -> list[float]:
        clock, buckets = VirtualClock(), Buckets()
        provider = FakeProvider(clock, reply=lambda _: SendFailed("failed", "500"))
        with pytest.raises(RetryableError):
            await clock.run(buckets.client(provider, clock).ask(call(), FREE))
        return [at for at, _ in provider.sends]

    once, again = await times(), await times()
    assert once == again
    assert len(once) == 6
    gaps = [later - earlier for earlier, later in itertools.pairwise(once)]
    assert gaps[-1] > gaps[0]


async def test_a_timeout_is_tried_again_and_listed_as_perhaps_paid_twice() -> None:
    clock, buckets = VirtualClock(), Buckets()
    outcomes: Iterator[Reply | SendFailed] = iter([SendFailed("unknown", "timed out"), Reply("ok", "stop", 1, 1)])
    provider = FakeProvider(clock, reply=lambda _: next(outcomes))
    answer = await clock.run(buckets.client(provider, clock).ask(call(), FREE))
    assert answer.rebought
    assert [one.attempt for one in await rebought(buckets.ledger, "m1")] == [2]


async def test_too_much_patience_puts_the_job_off_at_once() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: SendFailed("limited", "429", 900.0))
    with pytest.raises(RetryableError) as put_off:
        await clock.run(buckets.client(provider, clock).ask(call(), FREE))
    assert put_off.value.delay >= 900
    assert len(provider.sends) == 1


async def test_one_refusal_does_not_stop_the_rest_and_is_not_retried() -> None:
    clock, buckets = VirtualClock(), Buckets()

    def reply(asked: Call) -> Reply | SendFailed:
        text = asked.messages[-1]["content"]
        return SendFailed("refused", "bad request") if text == "t3" else Reply(text, "stop", 1, 1)

    provider = FakeProvider(clock, latency=1, reply=reply)
    results = await clock.run(buckets.client(provider, clock).ask_all([call(f"t{n}") for n in range(8)], FREE))
    assert [one.text if isinstance(one, Answer) else type(one) for one in results] == [
        "t0",
        "t1",
        "t2",
        ServiceLLMRefused,
        *[f"t{n}" for n in range(4, 8)],
    ]
    assert len(provider.sends) == 8


async def test_a_filtered_answer_is_a_refusal_that_is_paid_once() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: Reply("", "content_filter", 9, 0))
    client = buckets.client(provider, clock)
    for _ in range(2):
        with pytest.raises(ServiceLLMRefused):
            await clock.run(client.ask(call(), FREE))
    assert len(provider.sends) == 1


async def test_a_missing_key_is_permanent_and_a_persons_mistake() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: ServiceLLMMisconfigured("no key", field="api_key_env"))
    with pytest.raises(ServiceLLMMisconfigured) as error:
        await clock.run(buckets.client(provider, clock).ask(call(), FREE))
    assert isinstance(error.value, PermanentError) and isinstance(error.value, UserInputError)
    assert await rebought(buckets.ledger, "m1") == []


async def test_a_bug_is_not_hidden() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await clock.run(buckets.client(provider, clock).ask_all([call("a"), call("b")], FREE))


async def test_no_more_at_once_than_the_spec_allows_also_over_several_jobs() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"concurrency": 4})
    provider = FakeProvider(clock, latency=5)
    client = buckets.client(provider, clock)
    await clock.run(
        together([client.ask_all([call(f"{job}-{n}", llm=llm, job=job) for n in range(10)], FREE) for job in "abc"])
    )
    assert (provider.paid.total(), provider.most_in_flight) == (30, 4)


async def test_a_store_that_stalls_does_not_let_calls_out_in_a_burst() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"requests_per_minute": 60})
    provider, back = FakeProvider(clock), clock.now() + 20

    class Stalling(LossyKeyValue):
        async def create(self, key: str, value: bytes) -> int:
            if key.startswith("call."):
                await clock.sleep(back - clock.now())
            return await super().create(key, value)

    client = buckets.client(provider, clock, wrap=lambda kv: Stalling(kv, 0))
    await clock.run(client.ask_all([call(f"t{n}", llm=llm) for n in range(10)], FREE))
    times = [at for at, _ in provider.sends]
    assert len(times) == 10
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))


async def test_an_answer_too_large_to_keep_is_refused_and_says_what_to_do() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, reply=lambda _: Reply("x" * 950_000, "stop", 1, 1))
    with pytest.raises(ServiceLLMRefused, match="max_tokens"):
        await clock.run(buckets.client(provider, clock).ask(call(), FREE))


async def test_counts_and_spans_of_a_job_are_the_same_after_a_restart() -> None:
    clock, buckets = VirtualClock(), Buckets()
    provider = FakeProvider(clock, latency=2)
    await clock.run(buckets.client(provider, clock).ask(call("shared", job="other"), FREE))
    calls = [call("shared"), call("a"), call("b"), call("b")]
    whole = await clock.run(buckets.client(provider, clock).ask_all(calls, FREE))
    again = await clock.run(buckets.client(provider, clock, replica="b").ask_all(calls, FREE))
    assert count_calls(whole) == count_calls(again)
    counts = count_calls(again)
    assert (counts.made, counts.from_ledger, counts.failed, counts.input_tokens) == (2, 2, 0, 20)
    assert count_calls([*again, ServiceLLMRefused("no")]).failed == 1
    [span] = work_spans(again)
    assert work_spans(whole) == [span]
    assert timedelta(seconds=2) <= span.ended - span.began < timedelta(seconds=2.1)
    assert provider.paid.total() == 3


async def test_stopped_work_knows_what_it_has_bought_answers_on_their_way_included() -> None:
    """Two are answered, two on their way, of which one is refused, and six were never asked; one is another's."""
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"concurrency": 2})
    replies = {"t3": Reply("", "content_filter", 9, 0)}
    provider = FakeProvider(
        clock, latency=5, reply=lambda one: replies.get(one.messages[-1]["content"], Reply("ok", "stop", 10, 5))
    )
    client = buckets.client(provider, clock)
    await clock.run(client.ask(call("t0", llm=llm, job="other"), FREE))
    asked = asyncio.ensure_future(client.ask_all([call(f"t{n}", llm=llm) for n in range(10)], FREE))

    async def stop_later() -> None:
        await clock.sleep(7)
        asked.cancel()
        await asyncio.wait({asked})

    await clock.run(stop_later())
    assert asked.cancelled() and provider.paid.total() == 5
    counts = client.bought_by(call().job)
    assert (counts.made, counts.refused, counts.input_tokens) == (4, 1, 39)
    assert client.bought_by("other").made == 1
    assert client.bought_by(call().job) == CallCounts()


async def test_spans_are_a_union() -> None:
    clock, buckets = VirtualClock(), Buckets()
    llm = LLM.model_copy(update={"concurrency": 1, "requests_per_minute": 10})
    provider = FakeProvider(clock, latency=1)
    answers = await clock.run(
        buckets.client(provider, clock).ask_all([call(f"t{n}", llm=llm) for n in range(3)], FREE)
    )
    spans = work_spans(answers)
    assert [round((span.ended - span.began).total_seconds(), 3) for span in spans] == [1, 1, 1]
    assert all(earlier.ended < later.began for earlier, later in itertools.pairwise(spans))


class Shape(BaseModel):
    text: str


def test_the_key_is_what_is_asked_of_which_model() -> None:
    base = call()
    same = [
        call(job="another", migration="m2", purpose="x"),
        call(llm=LLM.model_copy(update={"base_url": "http://localhost/v1", "api_key_env": "K", "timeout_s": 1})),
    ]
    other = [
        call("other"),
        call(llm=LLM.model_copy(update={"model": "openai:gpt-4o-mini"})),
        call(llm=LLM.model_copy(update={"temperature": 0.5})),
        call(max_tokens=21),
        call(temperature=0.0),
        call(seed=1),
        call(sample=1),
        call(schema=Shape),
    ]
    assert {one.key for one in same} == {base.key}
    assert len({base.key, *(one.key for one in other)}) == 9
    assert base.key.startswith("call.") and len(base.key) == 69


def test_unusable_calls_are_refused_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="migration"):
        call(migration="a.b")
    with pytest.raises(ValueError, match="end with"):
        Call(messages=[{"role": "assistant", "content": "x"}], llm=LLM, migration="m", job="j")
    with pytest.raises(ValueError, match="role"):
        Call(
            messages=[{"role": "tool", "content": "x"}, {"role": "user", "content": "x"}],
            llm=LLM,
            migration="m",
            job="j",
        )


async def test_two_services_and_two_migrations_with_one_key_share_its_limits() -> None:
    """Whatever models they ask: requests in one case, tokens in the other."""
    for limits, most in (({"requests_per_minute": 60}, 60), ({"tokens_per_minute": 60 * 15}, 60)):
        clock, buckets = VirtualClock(), Buckets()
        provider = FakeProvider(clock, latency=0.1)
        judge = LLM.model_copy(update={**limits, "concurrency": 3})
        teacher = judge.model_copy(update={"model": "openai:gpt-4o-mini", "concurrency": 7})
        work = [
            buckets.client(provider, clock, replica=service).ask_all(
                [call(f"{service} {n}", llm=llm, migration=migration) for n in range(100)], FREE
            )
            for service, llm, migration in (("judge", judge, "m1"), ("synthesizer", teacher, "m2"))
        ]
        await clock.run(together(work))
        times = [at for at, _ in provider.sends]
        assert len(times) == 200
        windows = [sum(at <= other <= at + 60 for other in times) for at in times]
        assert max(windows) <= most
        assert times[-1] - times[0] < 60 * 200 / most / 0.8


class Marks(BaseModel):
    reason: str
    mark: Mark100


async def test_what_was_wrong_with_answers_is_counted_once_where_they_were_bought() -> None:
    clock, buckets = VirtualClock(), Buckets()
    good = '{"reason": "r", "mark": 85}'
    replies: dict[str, Reply] = {
        "good": Reply(good, "stop", 10, 5),
        "fraction": Reply('{"reason": "r", "mark": 87.5}', "stop", 10, 5),
        "odd": Reply('{"reason": "r", "mark": "85/100"}', "stop", 10, 5),
        "prose": Reply(f"Sure: {good}", "stop", 10, 5),
        "cut": Reply(good[:12], "length", 10, 5),
        "mumbled": Reply("I would say good.", "stop", 10, 5),
        "empty": Reply(" ", "stop", 10, 5),
        "refused": Reply("", "content_filter", 10, 5),
    }
    failures = {"patience": SendFailed("limited", "429", 0.1), "down": SendFailed("failed", "500")}

    def reply(asked: Call) -> Reply | SendFailed:
        text = asked.messages[-1]["content"]
        if text == "never":
            return SendFailed("refused", "400")
        return failures.pop(text, None) or replies.get(text, replies["good"])

    names = [*replies, *failures, "never"]
    calls = [call(name, schema=Marks) for name in names]
    client = buckets.client(FakeProvider(clock, reply=reply), clock)
    counts = count_calls(await clock.run(client.ask_all(calls, FREE)))
    expected = {"made": 10, "failed": 3, "limited": 1, "refused": 2, "cut": 1, "empty": 1, "odd": 2, "unreadable": 3}
    assert {name: getattr(counts, name) for name in expected} == expected
    assert counts.input_tokens == 100, "a refusal in words is paid"
    again = count_calls(await clock.run(client.ask_all(calls[:-1], FREE)))
    assert {name: getattr(again, name) for name in expected} == expected | {"failed": 2, "refused": 1}
    others = [call(name, schema=Marks, job="another") for name in names[:-1]]
    theirs = count_calls(await clock.run(client.ask_all(others, FREE)))
    assert theirs == CallCounts(from_ledger=10)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("turns", range(6))
async def test_a_call_asked_again_in_the_moment_in_which_it_is_given_up_is_asked_anew(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever turn of the event loop it is: waiting for what has just been given up would never let it go."""
    clock = VirtualClock()
    client = Buckets().client(FakeProvider(clock), clock)
    entry, held = Ledger.entry, asyncio.Event()

    async def slow_once(self: Ledger, key: str) -> LedgerEntry:
        if not held.is_set():
            held.set()
            await asyncio.Event().wait()
        return await entry(self, key)

    monkeypatch.setattr(Ledger, "entry", slow_once)
    first = asyncio.ensure_future(client.ask(call("t"), FREE))
    await held.wait()
    first.cancel()

    async def ask_again() -> Answer:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await client.ask(call("t"), FREE)

    assert (await clock.run(ask_again())).text == "re: t"
    assert first.cancelled()
