"""A log, a server, a disk without room: everybody waits, says why, and goes on; nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.bus.room import Room
from llamaduo.bus.service import Service
from llamaduo.bus.work import Record
from llamaduo.cli.doctor import Machine
from llamaduo.cli.log_room import log_room
from llamaduo.cli.system import SERVICES, Plan, running
from llamaduo.errors import BusFull
from llamaduo.event_parts import ArtifactRef
from llamaduo.events import MigrationCompleted, TrafficCaptured, WorkFailed
from llamaduo.migrations.fold import MigrationView
from llamaduo.service_llm.cas import change
from llamaduo.service_llm.clock import SystemClock
from llamaduo.settings import BusSettings
from tests.loop.test_backup import completed
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import NatsServer, bus_settings, connected, nats_server, serving, until

MIB = 1024**2


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


def captured(number: int) -> TrafficCaptured:
    """An event that sets off no work."""
    now, sha256 = datetime.now(UTC), f"{number:064x}"
    ref = ArtifactRef(uri=f"obj:{sha256}", sha256=sha256, size=1, media_type="application/x-ndjson")
    return TrafficCaptured(migration="traffic-t", alias="t", traffic=ref, rows=1, first=now, last=now)


async def nothing_lost_and_nothing_twice(bus: Bus, view: MigrationView, url: str) -> None:
    """It completed as if nothing had been; the emulator answered each call once; nothing was tried again and again.

    A second start can be: on a busy machine the reply to a claim gets lost, or one of these short leases runs out.
    """
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert view.passed is not None
    assert set(Counter((type(e), e.job_key()) for e in view.events.values()).values()) == {1}
    assert not view.of_type(WorkFailed) and not await list_dead(bus)
    assert set((await completed(url)).values()) == {1}
    work = await bus.bucket("work")
    records = [await work.get(key) for key in await work.keys("")]
    failures = [Record.model_validate_json(entry.value).failures for entry in records if entry is not None]
    assert max(failures) <= 2


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
                    await bus.publish(captured(number))
            machine = Machine(tmp_path, {"LLAMADUO_NATS_URL": server.url}, tmp_path)
            found = await asyncio.to_thread(log_room, machine)
            assert found.state == "need" and "full" in found.detail and found.mend.startswith("llamaduo bootstrap")
            tries = 0
            await asyncio.sleep(3)  # the pace of the tries is what is looked at
            assert tries < 3 * 10 * len(services), "no hot loop"
            await topology.bootstrap(bus.js, profile="faults")
            assert (await bus.js.stream_info(topology.EVENTS)).config.max_bytes == 100_000, "a limit stays"
            await topology.bootstrap(bus.js, profile="faults", max_bytes=-1)
            assert (await asyncio.to_thread(log_room, machine)).state == "ok"
            view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            await nothing_lost_and_nothing_twice(bus, view, url)

            async def well() -> bool:
                return await problem_of(services) is None

            await until(well, what="all are ready again")


async def problem_of(services: list[Service]) -> str | None:
    """What one of them says of a bus without room."""
    return next((p for service in services for p in service._problems if "full" in p), None)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes, in memory. It takes root, which CI has."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Somebody else's file that takes all but so many bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    ballast.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - leave))
    return ballast


@pytest.mark.timeout(300)
async def test_a_disk_that_runs_full_stops_nobody_for_good(tmp_path: Path) -> None:
    """The server stores nothing more on it, not even after there is room, until it is started anew."""
    with small_disk(tmp_path / "disk", 64 * MIB) as disk, nats_server(disk / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator() as url:
            services = all_services(server, tmp_path)
            async with serving(*services):
                migration = await submit(bus, spec_of(url))

                async def under_way() -> bool:
                    return await bus.last_seq() >= 12

                await until(under_way, seconds=60)
                ballast = fill(disk, leave=16_384)
                problem = await until(
                    lambda: problem_of(services), seconds=90, what="somebody who says that it is full"
                )
                assert "make room on the disk" in problem
                ballast.unlink()
                server.kill()
                server.start()
                view = await until(lambda: ended(bus, migration), seconds=180, what="the end")
                await nothing_lost_and_nothing_twice(bus, view, url)


async def test_each_kind_of_write_waits_for_room(tmp_path: Path) -> None:
    """An event, an artifact and a key, where the server's own limit is reached and then raised while it runs."""
    with nats_server(tmp_path / "nats") as server:
        config = tmp_path / "nats" / "nats.conf"
        unlimited = config.read_text()
        config.write_text(unlimited.replace("sync_interval", "max_file_store: 1M, sync_interval"))
        server.kill()
        server.start()
        async with connected(server, tmp_path) as bus:
            patient = await Bus.connect(bus_settings(server, tmp_path), "patient", patient=True)
            store, work = await patient.artifacts(), await patient.bucket("work")
            with pytest.raises(BusFull, match="make room on the disk"):
                for _ in range(100):
                    await bus.republish("dataset.ready", bytes(20_000), {})
            with pytest.raises(BusFull, match="make room on the disk"):
                await put_bytes(await bus.artifacts(), b"a row", "text/plain")
            with pytest.raises(BusFull, match="make room on the disk"):
                await bus.publish(captured(0))
            with pytest.raises(BusFull, match="make room on the disk"):
                await work.create("a", b"{}")
            event = asyncio.create_task(patient.publish(captured(0)))
            artifact = asyncio.create_task(put_bytes(store, b"a row", "text/plain"))
            entry = asyncio.create_task(
                change(work, "b", lambda value: (b"{}" if value is None else None, "written"), SystemClock())
            )

            async def known() -> bool:
                return patient.room.full is not None

            await until(known)
            assert not any(task.done() for task in (event, artifact, entry))
            config.write_text(unlimited.replace("sync_interval", "max_file_store: 1G, sync_interval"))
            server.reload()
            assert await asyncio.wait_for(event, 40)
            assert await read_bytes(store, await asyncio.wait_for(artifact, 40)) == b"a row"
            assert await asyncio.wait_for(entry, 40) == "written"
            assert patient.room.full is None
            await patient.close()


async def test_who_leaves_waits_no_more(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus:
        await topology.bootstrap(bus.js, profile="faults", max_bytes=1000)
        patient = await Bus.connect(bus_settings(server, tmp_path), "patient", patient=True)
        for number in range(10):
            task = asyncio.create_task(patient.publish(captured(number)))
            await asyncio.wait({task}, timeout=2)
            if not task.done():
                break
        assert not task.done()
        patient.room.leave()
        with pytest.raises(BusFull):
            await asyncio.wait_for(task, 5)
        await patient.close()


@pytest.mark.timeout(200)
async def test_up_starts_its_server_anew_once_there_is_room(tmp_path: Path) -> None:
    told: list[str] = []
    with small_disk(tmp_path / "disk", 128 * MIB) as disk:
        plan = Plan(disk / "state", nats_port=0, without=tuple(SERVICES), say=told.append)
        async with running(plan) as system:
            server = system.supervisor.children["nats-server"]
            first = server.pid
            bus = await Bus.connect(BusSettings(nats_url=system.nats_url), "test", patient=True)
            await bus.publish(captured(0))
            ballast = fill(disk, leave=65_536)
            writing = asyncio.create_task(bus.republish("dataset.ready", bytes(200_000), {"Nats-Msg-Id": "large"}))

            async def noticed() -> bool:
                return bool(told)

            await until(noticed, seconds=40, what="that the disk is full")
            assert server.pid == first and not writing.done()
            ballast.unlink()
            await asyncio.wait_for(writing, 60)
            assert server.pid not in (None, first) and server.quick_deaths <= 1
            assert await bus.last_seq() == 2
            await bus.close()
    assert ["full" in line for line in told] == [True, False]
