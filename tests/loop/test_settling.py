"""How messages are settled, on a real server: the traps of the bus that can hit us."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead, replay
from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.bus.settling import Message
from llamaduo.bus.work import claim
from llamaduo.errors import BudgetExhausted, PermanentError, RetryableError
from llamaduo.event_parts import Adapter
from llamaduo.events import (
    AdapterTrained,
    AnyEvent,
    BudgetRefused,
    CancelRequested,
    DatasetReady,
    EvalFailed,
    Event,
    MigrationCompleted,
    PromoteRequested,
    WorkFailed,
)
from tests.support import NatsServer, connected, nats_server, service_settings, serving, until

DIGEST = "0" * 64


def dataset(migration: str = "m-1", number: int = 0) -> DatasetReady:
    return DatasetReady(migration=migration, round=number, splits={}, rows={}, digest=DIGEST)


def trained(event: DatasetReady) -> AdapterTrained:
    adapter = Adapter(digest=DIGEST, files={}, base_model="b", base_digest="d", rank=8)
    return AdapterTrained(
        migration=event.migration, round=event.round, adapter=adapter, dataset=DIGEST, recipe={}, steps=1, best_step=1
    )


class Trainer:
    """A handler that counts and does what it is told, call by call; the last instruction repeats."""

    def __init__(self, *script: Any) -> None:
        self.script, self.calls = list(script), 0

    async def __call__(self, event: DatasetReady, work: Work) -> Sequence[Event]:
        step = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if isinstance(step, Exception):
            raise step
        if isinstance(step, (int, float)):
            await asyncio.sleep(step)
        return [trained(event)]


def trainer(server: NatsServer, folder: Path, handler: Any, replica: str = "one", copies: int = 1) -> Service:
    return Service("trainer", service_settings(server, folder, replica), roles={"trainer": (handler, copies)})


async def events(bus: Bus) -> list[AnyEvent]:
    return [logged.event async for logged in bus.log(follow=False)]


async def seen(bus: Bus, model: type[Event], count: int = 1) -> list[AnyEvent] | None:
    found = [event for event in await events(bus) if isinstance(event, model)]
    return found if len(found) >= count else None


async def idle(bus: Bus, durable: str = "trainer") -> bool:
    await bus.last_seq()
    info = await bus.js.consumer_info(topology.EVENTS, durable)
    return bool(info.num_ack_pending == 0 and info.num_pending == 0)


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_a_job_is_done_once_though_it_is_published_twice(server: NatsServer, tmp_path: Path) -> None:
    handler = Trainer(0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        assert await bus.publish(dataset()) is True
        assert await bus.publish(dataset()) is False
        await until(lambda: seen(bus, AdapterTrained))
        await until(lambda: idle(bus))
        assert handler.calls == 1


async def test_a_repeat_beyond_the_brokers_window_is_found_finished(server: NatsServer, tmp_path: Path) -> None:
    """Trap 24: the window forgets; the record does not."""
    handler = Trainer(0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        await until(lambda: seen(bus, AdapterTrained))
        event = dataset()
        await bus.republish("dataset.ready", event.model_dump_json().encode(), {"Nats-Msg-Id": "another"})
        await until(lambda: idle(bus))
        assert handler.calls == 1
        assert len(await seen(bus, AdapterTrained) or []) == 1


@pytest.mark.parametrize("body", [b"\xff\xfe", b"not json", b"{}", b'{"type":"dataset.ready"}', b'{"type":"x.y"}'])
async def test_garbage_becomes_a_dead_letter_and_stops_nobody(
    server: NatsServer, tmp_path: Path, body: bytes
) -> None:
    """Traps 1, 2, 35: no loop, nothing lost, the next message is worked on."""
    handler = Trainer(0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.republish("dataset.ready", body, {"Nats-Msg-Id": "bad", "content-type": "application/json"})
        await bus.publish(dataset())
        await until(lambda: seen(bus, AdapterTrained))
        await until(lambda: seen(bus, WorkFailed))
        letters = await list_dead(bus)
        assert [letter.body for letter in letters] == [body]
        assert letters[0].consumer == "trainer"


async def test_a_permanent_error_is_not_tried_again(server: NatsServer, tmp_path: Path) -> None:
    handler = Trainer(PermanentError("this can never work"))
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        failed = (await until(lambda: seen(bus, WorkFailed)))[0]
        assert isinstance(failed, WorkFailed)
        assert "this can never work" in failed.error and failed.job == dataset().id
        await until(lambda: idle(bus))
        assert handler.calls == 1


async def test_a_failing_job_is_tried_as_often_as_allowed_with_pauses_and_then_kept(
    server: NatsServer, tmp_path: Path
) -> None:
    """Traps 2, 3, 4, 37."""
    handler = Trainer(RetryableError("not now", delay=0.1))
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        await until(lambda: seen(bus, WorkFailed))
        assert handler.calls == 3
        letter = (await list_dead(bus))[0]
        assert letter.attempts == 3
        handler.script = [0]
        await replay(bus, letter)
        await until(lambda: seen(bus, AdapterTrained))
        assert await list_dead(bus) == []


async def test_a_second_try_can_succeed(server: NatsServer, tmp_path: Path) -> None:
    handler = Trainer(ValueError("a bug that shows once"), 0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        await until(lambda: seen(bus, AdapterTrained))
        assert handler.calls == 2
        assert await seen(bus, WorkFailed) is None


async def test_work_longer_than_the_ack_wait_runs_once_with_two_replicas(server: NatsServer, tmp_path: Path) -> None:
    """Traps 7, 10: heartbeats reach broker and lease."""
    handler = Trainer(topology.TIMINGS["faults"].lease * 2)
    services = [trainer(server, tmp_path, handler, replica) for replica in ("one", "two")]
    async with connected(server, tmp_path) as bus, serving(*services):
        await bus.publish(dataset())
        await until(lambda: seen(bus, AdapterTrained))
        await until(lambda: idle(bus))
        assert handler.calls == 1


async def test_leaving_hands_the_job_to_another_at_once_and_does_not_count_as_a_try(
    server: NatsServer, tmp_path: Path
) -> None:
    """Trap 38 and the graceful part of 37."""
    slow, quick = Trainer(60), Trainer(0)
    async with connected(server, tmp_path) as bus:
        async with serving(trainer(server, tmp_path, slow)):
            await bus.publish(dataset())

            async def begun() -> bool:
                return slow.calls == 1

            await until(begun)
        async with serving(trainer(server, tmp_path, quick, "two")):
            await until(lambda: seen(bus, AdapterTrained), seconds=20)
        entry = await (await bus.bucket("work")).get(f"trainer.{dataset().id}")
        assert entry is not None and b'"releases":1' in entry.value


async def test_a_service_that_leaves_takes_nothing_more(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 2: what it hands back at once would come to it at once, for as long as it takes to leave."""
    nacks = 0
    nack = Message._nack

    async def counted(self: Message, delay: float) -> None:
        nonlocal nacks
        nacks += 1
        await nack(self, delay)

    async def more() -> bool:
        return nacks > 3

    async def leave_slowly() -> None:
        with contextlib.suppress(AssertionError):
            await until(more, seconds=2)

    monkeypatch.setattr(Message, "_nack", counted)
    handler = Trainer(60)
    async with connected(server, tmp_path) as bus:
        service = trainer(server, tmp_path, handler)
        service.on_close(leave_slowly)
        async with serving(service):
            await bus.publish(dataset())

            async def begun() -> bool:
                return handler.calls == 1

            await until(begun)
        assert nacks == 1
        assert (await bus.js.consumer_info(topology.EVENTS, "trainer")).num_redelivered == 0


async def test_a_server_restart_in_the_middle_loses_nothing_and_doubles_nothing(
    server: NatsServer, tmp_path: Path
) -> None:
    """Traps 14, 17, 18, 32."""
    handler = Trainer(0.3)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        for number in range(6):
            await bus.publish(dataset(number=number))
        await until(lambda: seen(bus, AdapterTrained, 2))
        server.kill()
        server.start()
        found = await until(lambda: seen(bus, AdapterTrained, 6), seconds=60)
        assert sorted(e.round for e in found if isinstance(e, AdapterTrained)) == list(range(6))
        await until(lambda: idle(bus), seconds=30)


async def test_a_deleted_durable_ends_the_service_instead_of_spinning(server: NatsServer, tmp_path: Path) -> None:
    """Trap 16."""
    async with connected(server, tmp_path) as bus:
        service = trainer(server, tmp_path, Trainer(0))
        task = asyncio.create_task(service.serve())

        async def ready() -> bool:
            return not service._problems

        await until(ready)
        await bus.js.delete_consumer(topology.EVENTS, "trainer")
        with pytest.raises(RuntimeError, match="trainer does not exist"):
            await asyncio.wait_for(task, 30)


async def test_readiness_waits_for_bootstrap(server: NatsServer, tmp_path: Path) -> None:
    """Traps 5, 6, 26: services declare nothing and are not ready without their durable."""
    async with connected(server, tmp_path, bootstrap=False) as bus:
        service = trainer(server, tmp_path, Trainer(0))
        async with serving(service):

            async def waiting() -> bool:
                return any("does not exist" in problem for problem in service._problems)

            await until(waiting)
            await topology.bootstrap(bus.js, profile="faults")

            async def ready() -> bool:
                return not service._problems

            await until(ready)


async def test_a_cancelled_migration_stops_its_work_in_hand(server: NatsServer, tmp_path: Path) -> None:
    handler = Trainer(60)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())

        async def begun() -> bool:
            return handler.calls == 1

        await until(begun)
        await bus.publish(CancelRequested(migration="m-1", command="c-12345678"))
        await until(lambda: idle(bus), seconds=10)
        assert await seen(bus, AdapterTrained) is None


async def test_an_operators_command_in_hand_outlives_its_migration(server: NatsServer, tmp_path: Path) -> None:
    """A promotion asked for just before the end is carried out, and not recorded as done without an effect."""
    begun, ended, carried_out = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def promote(_event: PromoteRequested, _work: Work) -> list[Event]:
        begun.set()
        await ended.wait()
        carried_out.set()
        return []

    service = Service(
        "inference", service_settings(server, tmp_path, "one"), roles={"inference-promotion": (promote, 1)}
    )
    service.on_event(lambda event: ended.set() if isinstance(event, MigrationCompleted) else None)
    async with connected(server, tmp_path) as bus, serving(service):
        await bus.publish(PromoteRequested(migration="m-1", command="c-12345678", round=0))
        await asyncio.wait_for(begun.wait(), 20)
        await bus.publish(MigrationCompleted(migration="m-1", round=0))
        await until(lambda: idle(bus, "inference-promotion"))
        assert carried_out.is_set()


async def test_a_cancel_that_comes_while_a_job_is_claimed_stops_it(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Trainer(60)
    folded = asyncio.Event()

    async def claim_slowly(*given: Any, **named: Any) -> Any:
        lease = await claim(*given, **named)
        await bus.publish(CancelRequested(migration="m-1", command="c-12345678"))
        await folded.wait()
        return lease

    monkeypatch.setattr("llamaduo.bus.settling.claim", claim_slowly)
    service = trainer(server, tmp_path, handler)
    service.on_event(lambda event: folded.set() if isinstance(event, CancelRequested) else None)
    async with connected(server, tmp_path) as bus, serving(service):
        await bus.publish(dataset())
        await asyncio.wait_for(folded.wait(), 20)
        await until(lambda: idle(bus), seconds=20)
        await bus.publish(dataset(number=1))
        await until(lambda: idle(bus), seconds=20)
        assert await seen(bus, AdapterTrained) is None
        assert await (await bus.bucket("work")).keys("trainer.") == [f"trainer.{dataset().id}"]


async def test_a_refused_budget_is_an_event_and_not_a_dead_letter(server: NatsServer, tmp_path: Path) -> None:
    handler = Trainer(BudgetExhausted("money", 1.0, 0.99))
    service = Service("synthesizer", service_settings(server, tmp_path, "one"), roles={"synthesizer": (handler, 1)})
    async with connected(server, tmp_path) as bus, serving(service):
        await bus.publish(EvalFailed(migration="m-1", round=0, verdict="failed", marks={}, gate={}, rows=0))
        refused = (await until(lambda: seen(bus, BudgetRefused)))[0]
        assert isinstance(refused, BudgetRefused) and refused.what == "money"
        await until(lambda: idle(bus, "synthesizer"))
        assert await list_dead(bus) == []


async def test_two_jobs_at_once_need_two_copies_and_nothing_is_prefetched(server: NatsServer, tmp_path: Path) -> None:
    """Traps 7, 8, 9: what is not being worked on stays on the server for others."""
    handler = Trainer(60)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler, copies=2)):
        for number in range(4):
            await bus.publish(dataset(number=number))

        async def both() -> bool:
            return handler.calls == 2

        await until(both)
        info = await bus.js.consumer_info(topology.EVENTS, "trainer")
        assert (info.num_ack_pending, info.num_pending) == (2, 2)


async def test_a_service_that_finds_no_server_waits_and_still_leaves_when_told(
    server: NatsServer, tmp_path: Path
) -> None:
    server.kill()
    service = trainer(server, tmp_path, Trainer(0))
    task = asyncio.create_task(service.serve())
    done, _ = await asyncio.wait({task}, timeout=1)
    assert not done
    service.stop()
    await asyncio.wait_for(task, 10)
