"""Promises under kill, freeze and a polite end; the seeded harness runs as `python -m tests.faults`."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.events import AdapterTrained, AnyEvent, MigrationCompleted
from llamaduo.migrations.fold import MigrationView
from tests.faults.checker import effects, event_ids, violations
from tests.faults.evidence import gather
from tests.faults.kinds import left_out
from tests.faults.run import Outcome, bought_too_often, compare, play, spec, told, wait_ready
from tests.faults.schedule import KINDS, NATS, SPAN, Fault, schedule
from tests.faults.stage import SERVICES, Stage, staged
from tests.loop.test_loop import submit
from tests.support import bus_settings, free_port

pytestmark = pytest.mark.timeout(180)


def test_a_seed_always_draws_the_same_three_to_six_faults() -> None:
    assert schedule(7, 8) == schedule(7, 8) != schedule(8, 8)
    assert all(3 <= len(schedule(seed, 8)) <= 6 for seed in range(50))
    assert {fault.kind for fault in schedule(7, 8, ["cut", "clock"])} <= {"cut", "clock"}


def test_two_hundred_seeds_have_every_kind_twenty_times_and_hit_everybody() -> None:
    faults = [fault for seed in range(1, 201) for fault in schedule(seed, SPAN)]
    kinds = Counter(fault.kind for fault in faults)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 20, kinds
    victims = Counter(fault.victim for fault in faults)
    assert set(victims) == {*SERVICES, NATS} and min(victims.values()) >= 20, victims


def test_more_bought_again_than_can_have_been_in_flight_is_a_broken_promise() -> None:
    """Listing a call as bought twice does not excuse it."""
    keys = {f"k{n}": 2 for n in range(17)}
    trainer, judge, synthesizer = (Fault(1.0, "kill", name, 0.1) for name in ("trainer", "llm-judge", "synthesizer"))
    assert bought_too_often(keys, [trainer])
    assert bought_too_often(keys, [judge])
    assert not bought_too_often(keys, [judge, synthesizer])


async def test_a_fault_that_cannot_strike_is_what_the_run_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_stage: Stage, name: str, _number: int) -> None:
        raise RuntimeError(f"{name} does not die")

    monkeypatch.setattr(Stage, "send", broken)
    with pytest.raises(AssertionError, match="llm-judge does not die"):
        await play(tmp_path, free_port(), [Fault(0.0, "kill", "llm-judge", 0.1)])


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Outcome]:
    """The emulator's port and a run on it without faults: what all seeds must end in."""
    port = free_port()
    outcome = asyncio.run(play(tmp_path_factory.mktemp("calm"), port, []))
    assert outcome.problems == []
    return port, outcome


@pytest.mark.parametrize("seed", range(1, 21))
def test_under_seeded_faults_no_promise_is_broken_and_the_effects_are_the_same(
    seed: int, calm: tuple[int, Outcome], tmp_path: Path
) -> None:
    port, expected = calm
    faults = [fault for fault in schedule(seed, SPAN) if fault.kind not in missing_kinds()]
    hurt = asyncio.run(play(tmp_path, port, faults))
    again = f"faults: {told(faults)}\nagain: python -m tests.faults --seed {seed} --runs 1"
    assert compare(expected, hurt) == [], again


@functools.cache
def missing_kinds() -> dict[str, str]:
    """Asked once, and printed: these faults are left out."""
    missing = left_out()
    print(*(f"left out: {kind}: {why}" for kind, why in missing.items()), sep="\n")
    return missing


async def follow(bus: Bus, migration: str, until: Callable[[AnyEvent], bool], seconds: float = 90) -> list[AnyEvent]:
    """The migration's events up to the first one that `until` wants."""
    seen: list[AnyEvent] = []
    async with asyncio.timeout(seconds):
        async for logged in bus.log(follow=True):
            if logged.event.migration == migration:
                seen.append(logged.event)
                if until(logged.event):
                    return seen
    raise AssertionError("unreachable")


async def begun(stage: Stage, bus: Bus, names: list[str]) -> str:
    """Start services and submit; the migration's id."""
    await topology.bootstrap(bus.js, profile="faults")
    for name in names:
        stage.start(name)
    return await submit(bus, spec(stage.emulator_url))  # type: ignore[arg-type]


async def test_a_trainer_frozen_beyond_its_lease_changes_nothing_when_it_thaws(tmp_path: Path) -> None:
    """SIGSTOP, take-over by another replica, SIGCONT: one adapter, one event, and the frozen one goes on living."""
    slow = {"LLAMADUO_FAKE_SECONDS": "3"}
    with staged(tmp_path, free_port(), extra={"trainer/a": slow, "trainer/b": slow}) as stage:
        bus = await Bus.connect(bus_settings(stage.server, tmp_path), "test")
        migration = await begun(stage, bus, ["synthesizer", "verdict", "trainer/a"])
        bucket = await bus.bucket("work")

        async def owner() -> bool:
            for key in await bucket.keys("trainer."):
                entry = await bucket.get(key)
                return entry is not None and b'"owner":"trainer/a"' in entry.value and b'"running"' in entry.value
            return False

        async with asyncio.timeout(60):
            while not await owner():
                await asyncio.sleep(0.05)
        stage.send("trainer/a", signal.SIGSTOP)
        stage.start("trainer/b")
        await follow(bus, migration, lambda e: isinstance(e, AdapterTrained))
        stage.send("trainer/a", signal.SIGCONT)
        log = stage.folder / "trainer/a" / "log"
        async with asyncio.timeout(60):
            while b"another process owns" not in log.read_bytes():
                await asyncio.sleep(0.1)
        events = [e.event async for e in bus.log(follow=False) if e.event.migration == migration]
        assert [e.source for e in events if isinstance(e, AdapterTrained)] == ["trainer/trainer/b"]
        found = await gather(stage.server.url, stage.emulator_url)
        assert event_ids(found) + effects(found) == [] and stage.ended_by_themselves() == []
        await bus.close()


async def test_every_service_leaves_politely_within_twenty_seconds_and_nothing_is_lost(tmp_path: Path) -> None:
    """SIGTERM to each in the middle of its work, then a start: the migration completes, exit codes are 0."""
    with staged(tmp_path, free_port()) as stage:
        bus = await Bus.connect(bus_settings(stage.server, tmp_path), "test")
        migration = await begun(stage, bus, list(SERVICES))
        await follow(bus, migration, lambda e: e.type == "dataset.ready")
        await wait_ready(stage)
        for name in SERVICES:
            began = time.monotonic()
            await asyncio.to_thread(stage.send, name, signal.SIGTERM)
            assert time.monotonic() - began < 20, name
            assert stage.processes[name].returncode == 0, (name, stage.logs())
            stage.start(name)
        events = await follow(
            bus, migration, lambda e: e.type.startswith("migration.") and e.type != "migration.requested"
        )
        view = MigrationView(migration)
        for event in events:
            view.add(event)
        assert isinstance(view.ended, MigrationCompleted), view.ended
        assert violations(await gather(stage.server.url, stage.emulator_url)) == []
        await bus.close()
