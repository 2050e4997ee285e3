"""Backup and restore: whole, consistent, taken while everything runs, and enough to go on elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus import topology
from llamaduo.bus.backing_up import back_up
from llamaduo.bus.backup_place import MANIFEST, Manifest, Place
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.bus.restoring import restore
from llamaduo.bus.stream_lines import Line, decoded, references
from llamaduo.bus.stream_messages import messages
from llamaduo.bus.work import Record
from llamaduo.errors import UserInputError
from llamaduo.events import DatasetReady, EvalFailed, EvalScored, MigrationCompleted
from llamaduo.migrations.fold import MigrationView
from tests.loop.test_loop import all_services, emulator, ended, log_of, spec_of, submit
from tests.support import NatsServer, connected, nats_server, serving, until


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """An empty server on another machine, as it were."""
    with nats_server(tmp_path / "other nats") as running:
        yield running


def silent(what: str, done: int, total: int) -> None:
    assert 0 < done <= total, what


async def small_log(bus: Bus) -> list[DatasetReady]:
    """Three events with artifacts, the first settled by the trainer; a bad message, a dead letter, a job in hand."""
    store = await bus.artifacts()
    events = []
    for number in range(3):
        ref = await put_bytes(store, f"rows of round {number}\n".encode(), "application/x-ndjson")
        events.append(
            DatasetReady(migration="m-1", round=number, splits={"train": ref}, rows={"train": 1}, digest=ref.sha256)
        )
        await bus.publish(events[-1])
    await bus.republish("dataset.ready", b"\xff\x00 no text", {"Nats-Msg-Id": "bad"})
    sub = await bus.js.pull_subscribe_bind(consumer="trainer", stream=topology.EVENTS)
    (first,) = await sub.fetch(1)
    await first.ack_sync()
    await sub.unsubscribe()
    work = await bus.bucket("work")
    held = Record(state="running", owner="gone", until=9e9, starts=2, releases=1)
    await work.create("trainer.job", held.model_dump_json().encode())
    headers = {"Nats-Msg-Id": "dead:1", "llamaduo-dead-letter": "1" * 32, "llamaduo-error": '"why"'}
    await bus.publish_dead_letter("trainer", "dataset.ready", b"{}", headers)
    return events


def lines_of(folder: Path, manifest: Manifest, stream: str) -> list[Line]:
    sha256 = manifest.streams[stream].sha256
    return [decoded(raw) for raw in (folder / sha256[:2] / sha256).read_bytes().splitlines()]


async def backed_up(bus: Bus, folder: Path) -> Manifest:
    return await back_up(bus, Place(str(folder), make=True), silent)


async def restored(bus: Bus, folder: Path) -> bool:
    """Whether anything had to be done."""
    return not (await restore(bus, Place(str(folder)), silent, profile="faults")).already


async def taken_by(bus: Bus, durable: str, count: int) -> list[bytes]:
    sub = await bus.js.pull_subscribe_bind(consumer=durable, stream=topology.EVENTS)
    return [message.data for message in await sub.fetch(count, timeout=5)]


@pytest.mark.parametrize("set_up", [False, True])
async def test_what_was_backed_up_is_what_is_restored(
    server: NatsServer, other: NatsServer, tmp_path: Path, set_up: bool
) -> None:
    folder = tmp_path / "a backup"
    async with connected(server, tmp_path) as bus:
        await topology.add_evaluator(bus.js, "mine", profile="faults")
        events = await small_log(bus)
        manifest = await backed_up(bus, folder)
        first = (await list_dead(bus))[0]
    async with connected(other, tmp_path, bootstrap=set_up) as bus:
        assert await restored(bus, folder)
        assert [logged.event for logged in [e async for e in bus.log(follow=False)]] == events
        for event in events:
            text = await read_bytes(await bus.artifacts(), event.splits["train"])
            assert text == f"rows of round {event.round}\n".encode()
            assert not await bus.publish(event), "ids are kept, so a repeat is dropped"
        assert (await list_dead(bus)) == [first], "with the time of its first life"
        assert (await bus.js.stream_info(topology.EVENTS)).state.messages == 4, "a bad message is kept too"
        entry = await (await bus.bucket("work")).get("trainer.job")
        record = Record.model_validate_json(entry.value if entry else b"")
        assert (record.state, record.failures) == ("free", 0), "in nobody's hands, and no failed try"
        assert await taken_by(bus, "trainer", 3) == [b.body for b in lines_of(folder, manifest, "EVENTS")[1:]]
        mine = await bus.js.consumer_info(topology.EVENTS, "evaluator-mine")
        assert mine.num_pending == 0, "an evaluator that began late begins there again"


async def test_an_event_in_a_backup_never_refers_to_what_is_not_in_it(server: NatsServer, tmp_path: Path) -> None:
    """Backups while somebody stores and publishes as fast as he can."""
    async with connected(server, tmp_path) as bus:
        published = 0

        async def work() -> None:
            nonlocal published
            store = await bus.artifacts()
            while True:
                ref = await put_bytes(store, f"rows {published}".encode(), "text/plain")
                ready = {"splits": {"train": ref}, "rows": {"train": 1}, "digest": ref.sha256}
                await bus.publish(DatasetReady(migration="m-1", round=published, **ready))
                published += 1

        working = asyncio.create_task(work())
        seen = 0
        for number in range(5):

            async def more(before: int = seen) -> bool:
                return published > before + 20

            await until(more)
            folder = tmp_path / f"backup {number}"
            manifest = await backed_up(bus, folder)
            lines = lines_of(folder, manifest, "EVENTS")
            assert len(lines) > seen and not manifest.missing
            seen = len(lines)
            for line in lines:
                for ref in references(line.body):
                    assert (folder / ref.sha256[:2] / ref.sha256).stat().st_size == ref.size
        working.cancel()


async def test_a_backup_that_is_not_whole_or_not_sound_is_refused_and_nothing_is_done(
    server: NatsServer, other: NatsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with connected(server, tmp_path) as bus:
        events = await small_log(bus)
        manifest = await backed_up(bus, folder)
    text = (folder / MANIFEST).read_text()
    sha256 = events[0].splits["train"].sha256
    log = manifest.streams["EVENTS"].sha256
    artifact, stored = folder / sha256[:2] / sha256, folder / log[:2] / log
    async with connected(other, tmp_path, bootstrap=False) as bus:

        async def refused(match: str) -> None:
            with pytest.raises(UserInputError, match=match):
                await restored(bus, folder)
            streams = {info.config.name for info in await bus.js.streams_info()}
            assert streams <= {"OBJ_artifacts"}, "not even an empty log"

        (folder / MANIFEST).unlink()
        await refused("never finished")
        for damaged in (text[: len(text) // 2], text.replace('"lines": 4', '"lines": 3'), "[]", "null", ""):
            (folder / MANIFEST).write_text(damaged)
            await refused("is damaged")
        (folder / MANIFEST).write_text(json.dumps({"digest": "", "backup": {"format": 2}}))
        await refused("of format 2")
        (folder / MANIFEST).write_text(text)
        for path in (stored, artifact):
            body = path.read_bytes()
            path.write_bytes(body[:-1] + b"!")
            await refused("is damaged")
            path.unlink()
            await refused("is damaged.*no such artifact")
            path.write_bytes(body)
        assert await restored(bus, folder)
    with pytest.raises(UserInputError, match="no such folder"):
        Place(str(tmp_path / "elsewhere"))


async def test_a_backup_that_was_interrupted_leaves_the_one_before_as_it_was(
    server: NatsServer, other: NatsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with connected(server, tmp_path) as bus:
        await small_log(bus)
        await backed_up(bus, folder)
        await bus.publish(DatasetReady(migration="m-1", round=7, splits={}, rows={}, digest="0" * 64))

        def interrupt(what: str, done: int, total: int) -> None:
            if what == "KV_work":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await back_up(bus, Place(str(folder)), interrupt)
    async with connected(other, tmp_path, bootstrap=False) as bus:
        assert await restored(bus, folder)
        assert await bus.last_seq() == 4


async def test_a_restore_that_was_interrupted_goes_on_and_one_that_is_done_does_nothing(
    server: NatsServer, other: NatsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with connected(server, tmp_path) as bus:
        await small_log(bus)
        manifest = await backed_up(bus, folder)
        wanted = {stream: await contents(bus, stream) for stream in manifest.streams}
    async with connected(other, tmp_path, bootstrap=False) as bus:
        for at in ("artifacts", "KV_work", "DEAD_LETTERS", "EVENTS"):

            def interrupt(what: str, done: int, total: int, at: str = at) -> None:
                if what == at:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                await restore(bus, Place(str(folder)), interrupt, profile="faults")
        assert await bus.last_seq() == 1
        assert await restored(bus, folder)
        found = {stream: await contents(bus, stream) for stream in manifest.streams}
        assert {**found, "KV_work": []} == {**wanted, "KV_work": []}
        assert not await restored(bus, folder)


async def contents(bus: Bus, stream: str) -> list[tuple[str, bytes]]:
    """Subject and body of all messages, in order."""
    found: list[tuple[str, bytes]] = []
    async with contextlib.aclosing(messages(bus.js, stream, patience=1)) as reading:
        async for message in reading:
            if message is None:
                return found
            found.append((message.subject, message.data))
    return found


async def test_a_bus_that_is_not_empty_or_at_work_is_refused(
    server: NatsServer, other: NatsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    async with connected(server, tmp_path) as bus:
        await small_log(bus)
        await backed_up(bus, folder)
    async with connected(other, tmp_path) as bus:
        async with serving(*all_services(other, tmp_path)):

            async def waiting() -> bool:
                return bool((await bus.js.consumer_info(topology.EVENTS, "evaluator-exact-match")).num_waiting)

            await until(waiting)
            with pytest.raises(UserInputError, match="services are at work"):
                await restored(bus, folder)
        await (await bus.bucket("budget")).create("budget.m-9", b"{}")
        with pytest.raises(UserInputError, match="not empty: KV_budget"):
            await restored(bus, folder)
        await bus.publish(DatasetReady(migration="m-9", round=7, splits={}, rows={}, digest="0" * 64))
        with pytest.raises(UserInputError, match="not empty: EVENTS"):
            await restored(bus, folder)
        assert await bus.last_seq() == 1


async def completed(url: str) -> dict[str, int]:
    """How often the emulator answered, by call."""
    async with aiohttp.ClientSession() as http:
        answer = await http.get(url.removesuffix("/v1") + "/emulator/ledger")
        return {key: count["completed"] for key, count in (await answer.json())["keys"].items()}


def effects(view: MigrationView) -> dict[str, Any]:
    """What came of a migration, without times and who did it."""
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert view.passed is not None
    return {
        "data": [e.digest for e in sorted(view.of_type(DatasetReady), key=lambda e: e.round)],
        "failed": [e.failures for e in sorted(view.of_type(EvalFailed), key=lambda e: e.round)],
        "passed": (view.passed.round, view.passed.marks),
    }


async def test_a_migration_that_was_under_way_goes_on_on_an_empty_machine_to_the_same_effects(
    server: NatsServer, other: NatsServer, tmp_path: Path
) -> None:
    """Backed up amid work in hand. What the backup has is not bought again: the emulator's own count says so."""
    folder = tmp_path / "backup"
    async with emulator(latency_ms=20) as url:
        async with connected(server, tmp_path) as bus:
            async with serving(*all_services(server, tmp_path / "here")):
                migration = await submit(bus, spec_of(url))

                async def under_way() -> bool:
                    log = await log_of(bus, migration)
                    return sum(isinstance(e, EvalScored) for e in log) >= 10

                await until(under_way, seconds=60)
                manifest = await backed_up(bus, folder)
            before = await completed(url)
            ledger = lines_of(folder, manifest, "KV_ledger")
            kept = {one.subject.removeprefix("$KV.ledger.") for one in ledger if b'"answer":{' in one.body}
            assert len(kept) > 50 and kept <= before.keys()
        server.stop()

        async with connected(other, tmp_path, bootstrap=False) as bus:
            assert await restored(bus, folder)
            assert await ended(bus, migration) is None
            async with serving(*all_services(other, tmp_path / "there")):
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            assert {decoded_id(line) for line in lines_of(folder, manifest, "EVENTS")} <= set(view.events)
            assert set(Counter((type(e), e.job_key()) for e in view.events.values()).values()) == {1}
            assert not await list_dead(bus)
            after = await completed(url)
            assert len(after) > len(before)
            assert {after[key] for key in kept} == {1}, "no call that the backup knows was made again"

        server.start()  # the same without a restore
        async with connected(server, tmp_path) as bus, serving(*all_services(server, tmp_path / "here")):
            assert effects(await until(lambda: ended(bus, migration), seconds=90, what="the end")) == effects(view)


def decoded_id(line: Line) -> str:
    return str(json.loads(line.body)["id"])
