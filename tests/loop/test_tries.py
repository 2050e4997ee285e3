"""What counts as a failed try and what does not, and work that is not lost to an outage: on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.errors import Error as NatsError

from llamaduo.artifacts import put_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead, replay
from llamaduo.bus.desk import Work
from llamaduo.bus.kv import NatsKeyValue
from llamaduo.bus.service import Service
from llamaduo.bus.work import Lease
from llamaduo.datasets import Row, dump_rows
from llamaduo.errors import NotYet, PermanentError, RetryableError
from llamaduo.events import AdapterTrained, DatasetReady, Event, WorkFailed
from llamaduo.settings import BusSettings, ServiceSettings
from services.trainer.app import build as build_trainer
from services.trainer.settings import TrainerSettings
from tests.loop.test_settling import Trainer, dataset, idle, seen, trained, trainer
from tests.simulated import requested
from tests.support import NatsServer, connected, nats_server, service_settings, serving, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_a_finished_job_is_kept_through_an_outage(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies between the work and its commit, for longer than the lease: nothing is done again."""
    missed = asyncio.Event()
    commit = Lease.commit

    async def watched(self: Lease, results: list[str]) -> None:
        try:
            await commit(self, results)
        except (NatsError, TimeoutError):
            missed.set()
            raise

    monkeypatch.setattr(Lease, "commit", watched)
    calls = 0

    async def train(event: DatasetReady, _work: Work) -> Sequence[Event]:
        nonlocal calls
        calls += 1
        server.kill()
        return [trained(event)]

    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, train)):
        await bus.publish(dataset())
        await asyncio.wait_for(missed.wait(), 30)
        server.start()
        await until(lambda: seen(bus, AdapterTrained))
        await until(lambda: idle(bus))
        assert calls == 1


async def test_a_trainings_checkpoints_outlive_its_commit_and_go_with_the_next_job(
    server: NatsServer, tmp_path: Path
) -> None:
    """A commit that fails must find the training where it was, not at its beginning."""
    settings = TrainerSettings.model_validate(
        {"nats_url": server.url, "profile": "faults", "state_dir": tmp_path, "training_engine": "fake"}
    )
    async with connected(server, tmp_path) as bus, serving(build_trainer(settings)):
        row = Row(id="a", messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}])
        rows = await put_bytes(await bus.artifacts(), dump_rows([row]), "application/x-ndjson")
        await bus.publish(requested())
        for number in range(2):
            asked = dataset(number=number).model_copy(update={"splits": {"train": rows}, "rows": {"train": 1}})
            await bus.publish(asked)
            await until(lambda number=number: seen(bus, AdapterTrained, number + 1))  # type: ignore[misc]
            await until(lambda: idle(bus))
            assert [folder.name for folder in (tmp_path / "training").iterdir()] == [asked.id]


async def test_what_is_too_large_for_the_bus_is_given_up_at_once(server: NatsServer, tmp_path: Path) -> None:
    calls = 0

    async def train(event: DatasetReady, _work: Work) -> Sequence[Event]:
        nonlocal calls
        calls += 1
        return [trained(event).model_copy(update={"recipe": {"notes": "x" * 1_100_000}})]

    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, train)):
        await bus.publish(dataset())
        failed = (await until(lambda: seen(bus, WorkFailed)))[0]
        assert isinstance(failed, WorkFailed) and "more than the bus takes" in failed.error
        assert (calls, failed.attempts) == (1, 1)
        with pytest.raises(PermanentError, match="more than the bus takes"):
            await bus.publish(dataset().model_copy(update={"digest": "x" * 1_100_000}))


async def test_handing_over_and_waiting_are_no_failed_tries_where_the_broker_counts(
    server: NatsServer, tmp_path: Path
) -> None:
    """Trap 37 for the verdict, whose jobs are not leased: one hiccup after many hand-overs is the first failure."""
    attempts = next(d for d in topology.SERVICES["verdict"].durables).attempts
    script: list[Any] = [60, *[NotYet("not yet", delay=0.01)] * attempts, RetryableError("a hiccup", delay=0.1), 0]
    calls = 0

    async def look(_event: Event, _work: Work) -> Sequence[Event]:
        nonlocal calls
        step = script[min(calls, len(script) - 1)]
        calls += 1
        if isinstance(step, Exception):
            raise step
        await asyncio.sleep(step)
        return []

    def verdict() -> Service:
        return Service("verdict", service_settings(server, tmp_path, "one"), roles={"verdict": (look, 1)})

    async with connected(server, tmp_path) as bus:
        await bus.publish(dataset())
        async with serving(verdict()):

            async def begun() -> bool:
                return calls == 1

            await until(begun)
        async with serving(verdict()):
            await until(lambda: idle(bus, "verdict"))
        assert calls == len(script)
        assert await seen(bus, WorkFailed) is None


async def test_a_heartbeat_ends_with_its_handler(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 10: one that goes on would keep the broker from ever giving the job to anybody again."""
    release = Lease.release
    broken = [True]

    async def break_once(self: Lease, *, counted: bool) -> None:
        if broken.pop() if broken else False:
            raise ValueError("a mistake of ours while settling")
        await release(self, counted=counted)

    monkeypatch.setattr(Lease, "release", break_once)
    handler = Trainer(RetryableError("not now", delay=0.1), 0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        await until(lambda: seen(bus, AdapterTrained))
        assert (broken, handler.calls) == ([], 2)


async def test_a_user_who_may_read_his_own_inbox_only_gets_his_messages(tmp_path: Path) -> None:
    """Trap 25: a pull subscriber does not inherit the connection's inbox prefix."""
    server = NatsServer(tmp_path / "nats")
    with server._config.open("a") as config:
        config.write(
            'authorization { users: [ {user: "all", password: "p"}, {user: "trainer", password: "p", '
            'permissions: {publish: ">", subscribe: "_INBOX_trainer.>"}} ] }\n'
        )
    server.start()
    try:
        login = {"nats_password": "p", "nats_url": server.url, "profile": "faults", "state_dir": tmp_path}
        settings = ServiceSettings.model_validate({**login, "nats_user": "trainer"})
        bus = await Bus.connect(BusSettings.model_validate({**login, "nats_user": "all"}), "test")
        await topology.bootstrap(bus.js, profile="faults")
        async with serving(Service("trainer", settings, roles={"trainer": (Trainer(0), 1)})):
            await bus.publish(dataset())
            await until(lambda: seen(bus, AdapterTrained))
        await bus.close()
    finally:
        server.stop()


async def test_a_letter_is_put_back_while_its_job_is_still_being_given_up(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Trainer(PermanentError("never"), 0)
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, handler)):
        await bus.publish(dataset())
        await until(lambda: seen(bus, WorkFailed))
        await until(lambda: idle(bus))
        update = NatsKeyValue.update
        late = [True]

        async def overtaken(self: NatsKeyValue, key: str, value: bytes, revision: int) -> int:
            if late and late.pop():
                entry = await self.get(key)
                assert entry is not None
                await update(self, key, entry.value, entry.revision)
            return await update(self, key, value, revision)

        with monkeypatch.context() as patch:
            patch.setattr(NatsKeyValue, "update", overtaken)
            await replay(bus, (await list_dead(bus))[0])
        await until(lambda: seen(bus, AdapterTrained))
        assert late == []


async def test_dead_letters_of_a_recreated_stream_are_others(server: NatsServer, tmp_path: Path) -> None:
    """Trap 34: sequence numbers begin anew, and the second letter must not count as a repeat of the first."""
    async with connected(server, tmp_path) as bus:
        for number in (1, 2):
            async with serving(trainer(server, tmp_path, Trainer(0))):
                await bus.republish("dataset.ready", b"not json", {"Nats-Msg-Id": f"bad-{number}"})
                await until(lambda: seen(bus, WorkFailed))
            assert len(await list_dead(bus)) == number
            await bus.js.delete_stream(topology.EVENTS)
            await topology.bootstrap(bus.js, profile="faults")
