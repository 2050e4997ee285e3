"""Thousands of messages that are wrong in some way, while a migration goes on: it ends as ever, nobody falls over,
and each of them is accounted for. `LLAMADUO_POISONS=10000` throws as many at a bus as are read without one."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.bus.topology import Durable
from llamaduo.errors import BadEvent
from llamaduo.events import MigrationCompleted, WorkFailed, encode_event, event_of
from llamaduo.migrations.aliases import Aliases
from llamaduo.migrations.fold import fold
from services.trainer.work_folders import WorkFolders
from services.verdict.deciding import due
from services.verdict.metrics import LogFigures
from tests.faults.poison import Poison, poisons, samples
from tests.faults.run import spec, wait_ready
from tests.faults.stage import SERVICES, Stage, staged
from tests.loop.test_loop import ended, submit
from tests.simulated import START, dataset, requested
from tests.support import bus_settings, free_port, until

pytestmark = pytest.mark.timeout(1500)
COUNT, SEED = 10_000, 20_261_128
THROWN = int(os.environ.get("LLAMADUO_POISONS", "1000"))
"""At a bus with all services: a quarter of a minute a thousand, where they have two cores."""
AT_ONCE = 100


def durables() -> list[Durable]:
    return [durable for contract in topology.SERVICES.values() for durable in contract.durables]


def is_for(durable: Durable, subject: str) -> bool:
    return any(fnmatchcase(subject, pattern) for pattern in durable.subjects)


async def throw(bus: Bus, messages: Sequence[Poison]) -> dict[int, Poison]:
    """Publish them raw; the sequence number that each got in the log."""
    thrown: dict[int, Poison] = {}
    for start in range(0, len(messages), AT_ONCE):
        part = messages[start : start + AT_ONCE]
        acks = await asyncio.gather(
            *(bus.js.publish(m.subject, m.body, headers=m.headers, stream=topology.EVENTS, timeout=30) for m in part)
        )
        thrown |= {ack.seq: message for ack, message in zip(acks, part, strict=True)}
    return thrown


async def settled(bus: Bus, living: str) -> bool:
    """Whether the migration has ended and every message was settled by every durable."""
    infos = [await bus.js.consumer_info(topology.EVENTS, durable.name) for durable in durables()]
    if any((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos):
        await asyncio.sleep(0.5)
        return False
    return await ended(bus, living) is not None


def test_every_message_is_drawn_again_by_its_seed_and_most_cannot_be_read() -> None:
    first, again = poisons(500, 1, "m-1", 10_000), poisons(500, 1, "m-1", 10_000)
    assert first == again and {message.subject for message in first} == set(samples())
    assert 50 < sum(message.readable for message in first) < 300


def test_ten_thousand_wrong_messages_are_refused_or_can_be_judged() -> None:
    """What can be read is folded as it comes, and at every event it is clear what is due: at worst a named stop."""
    aliases, folders, figures, refused = Aliases(), WorkFolders(Path("nowhere")), LogFigures(), 0
    for message in poisons(COUNT, SEED, "m-1", 10_000):
        try:
            event = event_of(message.subject, message.body)
        except BadEvent as error:
            assert len(str(error)) < 1_000 and "\n" not in str(error)
            refused += 1
            continue
        own = fold([requested(event.migration), dataset(0, migration=event.migration), event])
        for one in (own, fold([event])):
            assert all(encode_event(due_now) for due_now in due(one, START))
        figures.take(event)
        figures.show([own, fold([event])], START)
        aliases.take(event)
        folders.take(event)
        assert event_of(event.type, encode_event(event)).id == event.id
    assert COUNT / 2 < refused < COUNT * 0.9


async def test_thousands_of_wrong_messages_stop_nobody_and_each_is_accounted_for(tmp_path: Path) -> None:
    with staged(tmp_path, free_port()) as stage:
        bus = await Bus.connect(bus_settings(stage.server, tmp_path), "test")
        try:
            await topology.bootstrap(bus.js, profile="faults")
            for name in SERVICES:
                stage.start(name)
            await wait_ready(stage)
            living = await submit(bus, spec(stage.emulator_url))  # type: ignore[arg-type]
            thrown = await throw(bus, poisons(THROWN, SEED, living, bus.client.max_payload))
            await until(lambda: settled(bus, living), seconds=120 + THROWN / 10, what="every message settled")
            await check(stage, bus, living, thrown)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{stage.logs()}") from error
        finally:
            await bus.close()


async def check(stage: Stage, bus: Bus, living: str, thrown: dict[int, Poison]) -> None:
    """Nobody fell over, nothing span, and every message that was refused is a dead letter of each who refused it."""
    assert stage.ended_by_themselves() == []
    events = [logged.event async for logged in bus.log(follow=False)]
    view = fold(event for event in events if event.migration == living)
    assert isinstance(view.ended, MigrationCompleted), view.ended
    letters = await list_dead(bus)
    assert len(thrown) == THROWN and {letter.log_seq for letter in letters} <= set(thrown)
    refused = Counter((letter.log_seq, letter.consumer) for letter in letters)
    assert set(refused.values()) == {1}
    for seq, message in thrown.items():
        asked = {d.name for d in durables() if is_for(d, message.subject)}
        buried = {consumer for of, consumer in refused if of == seq}
        wanted = buried <= asked if message.readable else buried == asked
        assert wanted, (message.kind, message.subject, buried)
    told = Counter(event.dead_letter for event in events if isinstance(event, WorkFailed))
    assert {letter.id: 1 for letter in letters}.items() <= told.items()
    for text in [letter.error for letter in letters] + [e.error for e in events if isinstance(e, WorkFailed)]:
        assert "Traceback" not in text and 'File "' not in text and len(text) <= 2000
    for durable in durables():
        info = await bus.js.consumer_info(topology.EVENTS, durable.name)
        state = await bus.js.stream_info(topology.EVENTS, subjects_filter=">")
        mine = sum(count for subject, count in (state.state.subjects or {}).items() if is_for(durable, subject))
        again = int(info.delivered.consumer_seq) - mine
        of_mine = sum(m.readable and is_for(durable, m.subject) for m in thrown.values())
        assert again <= durable.attempts * of_mine + 500, f"{durable.name}: {again} deliveries too many"
    logs = "".join((stage.folder / name / "log").read_text("utf-8", errors="replace") for name in SERVICES)
    for mistake in ("is left out", "settling a message", "cannot go on", "Maximum Payload"):
        assert mistake not in logs
