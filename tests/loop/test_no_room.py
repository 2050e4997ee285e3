"""A log, a server, a disk without room: everybody waits, says why, and goes on; nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.bus.room import Room
from llamaduo.bus.service import Service
from llamaduo.bus.work import Record
from llamaduo.errors import BusFull
from llamaduo.events import DatasetReady, MigrationCompleted, WorkFailed
from llamaduo.migrations.fold import MigrationView
from tests.loop.test_backup import completed
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import NatsServer, connected, nats_server, serving, until

MIB = 1024**2


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


def dataset(number: int) -> DatasetReady:
    return DatasetReady(migration="m-1", round=number, splits={}, rows={}, digest="0" * 64)


async def nothing_lost_and_nothing_twice(bus: Bus, view: MigrationView, url: str) -> None:
    """It completed as if nothing had been; nobody counted a try; the emulator answered each call once."""
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert view.passed is not None
    assert set(Counter((type(e), e.job_key()) for e in view.events.values()).values()) == {1}
    assert not view.of_type(WorkFailed) and not await list_dead(bus)
    assert set((await completed(url)).values()) == {1}
    work = await bus.bucket("work")
    records = [await work.get(key) for key in await work.keys("")]
    failures = [Record.model_validate_json(entry.value).failures for entry in records if entry is not None]
    assert max(failures) <= 1, "the start that did the work, and none before it"


async def test_with_a_full_log_everybody_waits_and_goes_on(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    once = Room._failed

    async def counted(room: Room, *about: Any) -> None:
        nonlocal tries
        tries += 1
        await once(room, *about)

    monkeypatch.setattr(Room, "_failed", counted)
    async with connected(server, tmp_path) as bus, emulator() as url:
        services = all_services(server, tmp_path)
        await topology.bootstrap(bus.js, profile="faults", max_bytes=100_000)
        async with serving(*services):
            migration = await submit(bus, spec_of(url))
            problem = await until(lambda: problem_of(services), seconds=60, what="somebody who says that it is full")
            assert "the log is full" in problem and "llamaduo bootstrap --max-bytes" in problem
            with pytest.raises(BusFull, match="bootstrap --max-bytes"):  # a command does not wait
                for number in range(1000):  # small ones may still fit
                    await bus.publish(dataset(number))
            tries = 0
            await asyncio.sleep(3)  # the pace of the tries is what is looked at
            assert tries < 3 * 10 * len(services), "no hot loop"
            await topology.bootstrap(bus.js, profile="faults")
            assert (await bus.js.stream_info(topology.EVENTS)).config.max_bytes == 100_000, "a limit stays"
            await topology.bootstrap(bus.js, profile="faults", max_bytes=-1)
            view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            await nothing_lost_and_nothing_twice(bus, view, url)

            async def well() -> bool:
                return await problem_of(services) is None

            await until(well, what="all are ready again")


async def problem_of(services: list[Service]) -> str | None:
    """What one of them says of a bus without room."""
    return next((p for service in services for p in service._problems if "full" in p), None)
