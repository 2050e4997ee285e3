"""The bus as a client sees it: publish once, replay, topology, buckets; the rest of the traps, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType
from nats.js.errors import APIError

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.kv import KeyConflict, KeyValue, MemoryKeyValue
from llamaduo.bus.mirror import Mirror
from llamaduo.errors import RetryableError
from llamaduo.events import DatasetReady, EvalFailed, MigrationCompleted
from tests.simulated import dataset, learner, simulate
from tests.support import NatsServer, Proxy, bus_settings, connected, nats_server, until


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_the_stream_is_on_disk_kept_for_ever_and_refuses_when_full(server: NatsServer, tmp_path: Path) -> None:
    """Traps 24, 30 and "refusing rather than forgetting"."""
    async with connected(server, tmp_path, bootstrap=False) as bus:
        await topology.bootstrap(bus.js, profile="faults", max_bytes=20_000)
        config = (await bus.js.stream_info(topology.EVENTS)).config
        assert config.storage == StorageType.FILE and config.retention == RetentionPolicy.LIMITS
        assert config.max_age in (0, None) and config.duplicate_window == topology.DAY_S
        with pytest.raises(RetryableError, match="refuses"):
            for number in range(200):
                await bus.publish(dataset(number))
        first = (await anext(aiter(bus.log(follow=False)))).event
        assert isinstance(first, DatasetReady) and first.round == 0


async def test_bootstrap_brings_settings_up_to_date_and_keeps_places(server: NatsServer, tmp_path: Path) -> None:
    """Trap 6: a durable that another release made is updated, not left as it was."""
    async with connected(server, tmp_path) as bus:
        old = ConsumerConfig(durable_name="trainer", ack_wait=99, max_deliver=3, filter_subjects=["dataset.ready"])
        await bus.js.delete_consumer(topology.EVENTS, "trainer")
        await bus.js.add_consumer(topology.EVENTS, old)
        await topology.bootstrap(bus.js, profile="faults")
        config = (await bus.js.consumer_info(topology.EVENTS, "trainer")).config
        assert (config.ack_wait, config.max_deliver) == (topology.TIMINGS["faults"].ack_wait, -1)
        await topology.bootstrap(bus.js, profile="faults")


async def test_two_bootstraps_at_once_are_one(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path, bootstrap=False) as bus:
        await asyncio.gather(*(topology.bootstrap(bus.js, profile="faults") for _ in range(2)))
        infos = await bus.js.consumers_info(topology.EVENTS)
        names = {d.name for c in topology.SERVICES.values() for d in c.durables}
        assert {info.name for info in infos} == names


async def test_an_unknown_profile_is_refused(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path, bootstrap=False) as bus:
        with pytest.raises(ValueError, match="unknown profile"):
            await topology.bootstrap(bus.js, profile="nonsense")


async def test_a_publish_that_cannot_be_stored_is_an_error_and_not_silence(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traps 19, 20."""
    monkeypatch.setattr("llamaduo.bus.connection.PUBLISH_TRIES", 2)
    async with connected(server, tmp_path, bootstrap=False) as bus:
        with pytest.raises(RetryableError):
            await bus.publish(dataset(0))


@pytest.mark.parametrize("away", ["server killed", "connection closed"])
async def test_publishing_while_the_bus_is_away_is_a_retryable_error(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Whoever publishes, the verdict's clock for one, need not know the client's own errors."""
    monkeypatch.setattr("llamaduo.bus.connection.PUBLISH_TRIES", 2)
    monkeypatch.setattr("llamaduo.bus.connection.PUBLISH_TIMEOUT_S", 0.3)
    async with connected(server, tmp_path) as bus:
        if away == "server killed":
            server.kill()
        else:
            await bus.client.close()
        with pytest.raises(RetryableError):
            await bus.publish(dataset(0))


async def test_the_log_is_replayed_in_order_and_followed_through_a_server_restart(
    server: NatsServer, tmp_path: Path
) -> None:
    log = simulate(learner(0.9))
    async with connected(server, tmp_path) as bus:
        for event in log[:5]:
            await bus.publish(event)
        seen: list[str] = []

        async def follow() -> None:
            async for logged in bus.log(follow=True):
                seen.append(logged.event.id)

        following = asyncio.create_task(follow())

        async def five() -> bool:
            return len(seen) == 5

        await until(five)
        server.kill()
        server.start()
        for event in log[5:10]:
            await bus.publish(event)

        async def ten() -> bool:
            return len(seen) == 10

        await until(ten, seconds=60)
        following.cancel()
        assert seen == [event.id for event in log[:10]]


async def test_what_a_breaking_connection_swallowed_is_read_again(server: NatsServer, tmp_path: Path) -> None:
    """Whatever was on its way: the news of an event, or the event."""
    async with connected(server, tmp_path) as bus, Proxy(server).running() as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        far = await Bus.connect(bus_settings(server, tmp_path).model_copy(update={"nats_url": url}), "far")
        rounds: dict[str, list[int]] = {"all": [], "some": []}

        async def follow(name: str, subjects: list[str] | None) -> None:
            async for logged in far.log(subjects, follow=True):
                if isinstance(logged.event, DatasetReady):
                    rounds[name].append(logged.event.round)

        following = [
            asyncio.create_task(follow("all", None)), asyncio.create_task(follow("some", ["dataset.ready"]))
        ]  # fmt: skip

        async def both(last: int) -> bool:
            return all(seen[-1:] == [last] for seen in rounds.values())

        async def written() -> bool:
            return b"dataset.ready" in proxy.held

        await bus.publish(dataset(0))
        await until(lambda: both(0))
        proxy.stall()
        await bus.publish(dataset(1))
        await until(written, what="the server wrote to the stalled connections")
        proxy.break_off()
        await bus.publish(dataset(2))
        await until(lambda: both(2), seconds=40)
        assert rounds == {"all": [0, 1, 2], "some": [0, 1, 2]}
        for task in following:
            task.cancel()
        await far.close()


async def test_what_got_lost_last_is_missed_too(server: NatsServer, tmp_path: Path) -> None:
    """No later message shows the gap: an idle reader looks by the clock."""
    async with connected(server, tmp_path) as bus, Proxy(server).running() as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        far = await Bus.connect(bus_settings(server, tmp_path).model_copy(update={"nats_url": url}), "far")
        mirror = Mirror(far, topology.ALL)
        await mirror.start()
        proxy.stall()
        await bus.publish(dataset(0))

        async def written() -> bool:
            return b"dataset.ready" in proxy.held

        await until(written)
        proxy.break_off()

        async def folded() -> bool:
            return mirror.get("m-1") is not None

        await until(folded, seconds=40)
        await mirror.stop()
        await far.close()


async def test_an_idle_reader_of_the_log_stays_alive(server: NatsServer, tmp_path: Path) -> None:
    """nats-py's fetch ends an idle wait with either of two TimeoutErrors."""
    async with connected(server, tmp_path) as bus:
        mirrors = [Mirror(bus, topology.ALL) for _ in range(8)]
        for mirror in mirrors:
            await mirror.start()
        await asyncio.sleep(11)  # two idle fetches of five seconds: the waiting itself is what is tested
        assert not any(mirror.failed for mirror in mirrors)
        await bus.publish(dataset(0))

        async def all_saw() -> bool:
            return all(mirror.get("m-1") is not None for mirror in mirrors)

        await until(all_saw)
        for mirror in mirrors:
            await mirror.stop()


async def test_the_mirror_keeps_open_migrations_and_forgets_ended_ones(server: NatsServer, tmp_path: Path) -> None:
    log = simulate(learner(0.9))
    assert isinstance(log[-1], MigrationCompleted)
    async with connected(server, tmp_path) as bus:
        for event in log:
            await bus.publish(event)
        await bus.publish(dataset(0, migration="m-2"))
        mirror = Mirror(bus, topology.ALL)
        await mirror.start()
        assert mirror.has_ended("m-1") and mirror.get("m-1") is None
        assert [view.migration for view in mirror.open()] == ["m-2"]
        await mirror.stop()


async def test_a_narrow_mirror_starts_though_the_newest_events_are_not_its_own(
    server: NatsServer, tmp_path: Path
) -> None:
    async with connected(server, tmp_path) as bus:
        for number in range(3):
            await bus.publish(dataset(number))
        mirror = Mirror(bus, (EvalFailed,))
        await asyncio.wait_for(mirror.start(), 10)
        await mirror.stop()


async def test_headers_carry_cloudevents(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus:
        event = dataset(0).model_copy(update={"source": "synthesizer/one"})
        await bus.publish(event)
        stored = await bus.js.get_msg(topology.EVENTS, 1)
        headers = stored.headers or {}
        assert headers["Nats-Msg-Id"] == headers["ce-id"] == event.id
        assert headers["ce-type"] == "dataset.ready" and headers["ce-source"] == "/llamaduo/synthesizer/one"
        assert headers["ce-time"] == event.at.isoformat() and headers["traceparent"].startswith("00-")


async def _bucket(kind: str, bus: Bus) -> KeyValue:
    return MemoryKeyValue() if kind == "memory" else await bus.bucket("work")


@pytest.mark.parametrize("kind", ["memory", "nats"])
async def test_compare_and_set_is_the_same_in_memory_and_on_the_bus(
    server: NatsServer, tmp_path: Path, kind: str
) -> None:
    async with connected(server, tmp_path) as bus:
        bucket = await _bucket(kind, bus)
        assert await bucket.get("a.b") is None
        first = await bucket.create("a.b", b"1")
        with pytest.raises(KeyConflict):
            await bucket.create("a.b", b"2")
        second = await bucket.update("a.b", b"2", first)
        with pytest.raises(KeyConflict):
            await bucket.update("a.b", b"3", first)
        entry = await bucket.get("a.b")
        assert entry is not None and (entry.value, entry.revision) == (b"2", second)
        await bucket.create("c.d", b"1")
        assert await bucket.keys("a.") == ["a.b"]
        assert sorted(await bucket.keys("")) == ["a.b", "c.d"]


async def test_evaluators_come_and_go(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus:
        await bus.publish(dataset(0))
        await topology.add_evaluator(bus.js, "late", profile="faults")
        await topology.add_evaluator(bus.js, "early", profile="faults", backfill=True)
        names = [info.name for info in await topology.list_evaluators(bus.js)]
        assert names == ["evaluator-early", "evaluator-exact-match", "evaluator-late", "evaluator-llm-judge"]
        assert await topology.remove_evaluator(bus.js, "late") is True
        assert await topology.remove_evaluator(bus.js, "late") is False


async def test_a_wrong_password_fails_at_once(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    with server._config.open("a") as config:
        config.write('authorization { user: "u", password: "p" }\n')
    server.start()
    try:
        settings = bus_settings(server, tmp_path)
        with pytest.raises(Exception, match=r"(?i)auth"):
            await asyncio.wait_for(Bus.connect(settings, "test", wait=False), 20)
        right = settings.model_copy(update={"nats_user": "u", "nats_password": _secret("p")})
        bus = await Bus.connect(right, "test")
        with pytest.raises((APIError, TimeoutError)):
            await bus.js.stream_info("NOT_THERE")
        await bus.close()
        assert "p'" not in repr(right)
    finally:
        server.stop()


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)
