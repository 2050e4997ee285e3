"""The client over real buckets: replicas share a ledger, a limit and a budget, also through a broker's death."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.bus.work import Record
from llamaduo.errors import BudgetExhausted
from llamaduo.events import DatasetReady, Event
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Answer, Call, Reply, ServiceLLMClient, rebought
from llamaduo.service_llm.budget import spent
from tests.simulated import dataset
from tests.support import NatsServer, connected, nats_server, service_settings, serving, until

LLM = ServiceLLM(model="openai:stand-in", base_url="http://127.0.0.1:1/v1", requests_per_minute=60_000)


class Provider:
    """Answers each call once `ready` says so, and counts."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.ready = asyncio.Event()
        self.ready.set()

    async def __call__(self, call: Call, idempotency_key: str) -> Reply:
        self.started[idempotency_key] += 1
        await self.ready.wait()
        return Reply(f"re: {call.messages[-1]['content']}", "stop", 10, 5)

    async def close(self) -> None:
        """Nothing is open."""


def call(text: str, job: str) -> Call:
    return Call(messages=[{"role": "user", "content": text}], llm=LLM, migration="m", job=job, max_tokens=5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_two_replicas_buy_each_call_once_and_stop_at_the_budget(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as one, connected(server, tmp_path) as two:
        provider, limit = Provider(), Budgets(calls=40)
        clients = [await _client(bus, provider) for bus in (one, two)]
        results = await asyncio.gather(
            clients[0].ask_all([call(f"t{n}", "job-a") for n in range(40)], limit),
            clients[1].ask_all([call(f"t{n}", "job-b") for n in range(20, 60)], limit),
        )
        answers = [answer for result in results for answer in result]
        assert set(provider.started.values()) == {1}
        assert len(provider.started) == 40
        assert sum(isinstance(answer, Answer) and answer.own for answer in answers) == 40
        assert any(isinstance(answer, BudgetExhausted) for answer in answers)
        ledger, budget = await one.bucket("ledger"), await one.bucket("budget")
        assert await rebought(ledger, "m") == []
        record = await spent(budget, "m")
        assert (record.settled.calls, record.held) == (40, {})


async def test_an_answer_that_comes_while_the_broker_is_dead_is_not_lost(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus:
        provider = Provider()
        provider.ready.clear()
        client = await _client(bus, provider)
        asked = asyncio.create_task(client.ask_all([call(f"t{n}", "job-a") for n in range(8)], Budgets(calls=100)))
        await until(_true(lambda: len(provider.started) == 8), what="all calls in flight")
        server.kill()
        provider.ready.set()
        await asyncio.sleep(0)
        assert not asked.done()
        server.start()
        answers = await asyncio.wait_for(asked, 50)
        assert all(isinstance(answer, Answer) for answer in answers)

        again = await (await _client(bus, provider)).ask_all(
            [call(f"t{n}", "job-a") for n in range(8)], Budgets(calls=100)
        )
        assert all(isinstance(answer, Answer) and answer.from_ledger and answer.own for answer in again)
        assert set(provider.started.values()) == {1}
        assert await rebought(await bus.bucket("ledger"), "m") == []
        record = await spent(await bus.bucket("budget"), "m")
        assert (record.settled.calls, record.held) == (8, {})


async def test_a_replica_that_leaves_hands_its_job_over_with_the_answers_it_has_paid_for(
    server: NatsServer, tmp_path: Path
) -> None:
    """SIGTERM of one of two: the other must not ask for what is on its way to the first."""
    provider = Provider()
    provider.ready.clear()
    clients: list[ServiceLLMClient] = []

    def replica(name: str) -> Service:
        async def mark(event: DatasetReady, work: Work) -> list[Event]:
            client = await _client(work.bus, provider)
            clients.append(client)
            answers = await client.ask_all([call(f"t{n}", work.job) for n in range(4)], Budgets())
            assert all(isinstance(answer, Answer) for answer in answers)
            return []

        return Service("trainer", service_settings(server, tmp_path, name), roles={"trainer": (mark, 1)})

    async with connected(server, tmp_path) as bus:
        first = replica("first")
        async with serving(first):
            await bus.publish(dataset(0))
            await until(_true(lambda: len(provider.started) == 4), what="all calls in flight")
            async with serving(replica("second")):
                first.stop()
                # The answers come once somebody has asked twice, or after a while in which nobody has.
                with contextlib.suppress(AssertionError):
                    await until(_true(lambda: max(provider.started.values()) > 1), seconds=3)
                provider.ready.set()
                bucket = await bus.bucket("work")

                async def done() -> bool:
                    entry = await bucket.get(f"trainer.{dataset(0).id}")
                    return entry is not None and Record.model_validate_json(entry.value).state == "done"

                await until(done)
        assert len(clients) == 2
        assert set(provider.started.values()) == {1}
        assert await rebought(await bus.bucket("ledger"), "m") == []


async def _client(bus: Bus, provider: Provider) -> ServiceLLMClient:
    return ServiceLLMClient(
        ledger=await bus.bucket("ledger"),
        budget=await bus.bucket("budget"),
        permits=await bus.bucket("permits"),
        replica=uuid4().hex,
        send=provider,
    )


def _true(check: Callable[[], bool]) -> Callable[[], Awaitable[bool | None]]:
    async def ask() -> bool | None:
        return check()

    return ask
