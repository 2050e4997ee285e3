"""What does not go on ends in a retry, a dead letter or a named stop, and holds up nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamaduo.artifacts import put_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.service import Service
from llamaduo.datasets import Message, ShardRow, dump_rows, make_row
from llamaduo.evaluating import evaluator_service
from llamaduo.evaluators import Evaluator, Score, Task
from llamaduo.event_parts import Candidate, MetricRange
from llamaduo.events import EvalScored, MigrationCompleted, MigrationStopped, ResponsesGenerated, WorkFailed
from services.trainer.app import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.trl_engine import TrlEngine
from services.verdict.app import build as verdict
from services.verdict.settings import VerdictSettings
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.loop.test_settling import idle, seen
from tests.simulated import dataset, requested
from tests.support import NatsServer, connected, nats_server, service_settings, serving, until

ROWS = "application/x-ndjson"


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_a_training_killed_each_time_is_tried_again_and_then_a_stop_that_says_what_to_do(
    server: NatsServer, tmp_path: Path
) -> None:
    """As the kernel does where memory is short."""
    starts = tmp_path / "starts"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho x >> {starts}\necho \'{{"kind": "ready"}}\'\nread job\nkill -9 $$\n')
    script.chmod(0o755)
    settings: dict[str, Any] = service_settings(server, tmp_path / "trainer", "one").model_dump()
    trainer = Trainer(TrainerSettings(**settings, training_engine="fake"), TrlEngine(python=str(script)))
    service = Service("trainer", service_settings(server, tmp_path, "one"), roles={"trainer": (trainer.train, 1)})
    judged = verdict(VerdictSettings(**service_settings(server, tmp_path / "verdict", "v").model_dump()))
    async with connected(server, tmp_path) as bus, serving(service, judged):
        rows = [
            make_row([Message(role="user", content=f"question {i}"), Message(role="assistant", content="yes")])
            for i in range(4)
        ]
        ref = await put_bytes(await bus.artifacts(), dump_rows(rows), ROWS)
        await bus.publish(requested().model_copy(update={"at": datetime.now(UTC)}))
        await bus.publish(dataset(0).model_copy(update={"splits": dict.fromkeys(dataset(0).splits, ref)}))
        [failed] = await until(lambda: seen(bus, WorkFailed), seconds=60)
        assert isinstance(failed, WorkFailed) and failed.attempts == 3 and failed.consumer == "trainer"
        assert len(starts.read_text().split()) == 3
        [stopped] = await until(lambda: seen(bus, MigrationStopped))
        assert isinstance(stopped, MigrationStopped) and stopped.rule == "error"
        assert "out of memory" in stopped.reason and "fewer rows a batch" in stopped.reason


class Marker:
    """An evaluator that takes its time over each shard; `held` is the most rows it had at once."""

    def __init__(self, name: str, seconds: float) -> None:
        self.seconds, self.now, self.held = seconds, 0, 0
        self.evaluator = Evaluator(name, "1", {"exact": MetricRange()}, self.score)

    async def score(self, rows: Sequence[ShardRow], _task: Task) -> list[Score]:
        self.now += len(rows)
        self.held = max(self.held, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= len(rows)
        return [Score(row=row.row, metric="exact", value=1.0) for row in rows]


async def marks_by(bus: Bus) -> Counter[str]:
    return Counter([e.event.evaluator async for e in bus.log(follow=False) if isinstance(e.event, EvalScored)])


async def test_a_slow_evaluator_holds_up_no_other_and_takes_no_more_than_it_works_on(
    server: NatsServer, tmp_path: Path
) -> None:
    shards, size = 60, 10
    fast, slow = Marker("fast", 0), Marker("slow", 0.5)
    async with connected(server, tmp_path) as bus:
        for one in (fast, slow):
            await topology.add_evaluator(bus.js, one.evaluator.name, profile="faults", backfill=True)
        names = [one.evaluator.name for one in (fast, slow)]
        await bus.publish(requested(evaluators=names, gate={"absolute": {"fast.exact": 0.7}}))
        rows = [
            ShardRow(row=f"r{i}", messages=[Message(role="user", content="?")], reference="a", answers=["a"])
            for i in range(size)
        ]
        ref = await put_bytes(await bus.artifacts(), dump_rows(rows), ROWS)
        for shard in range(shards):
            await bus.publish(
                ResponsesGenerated(
                    migration="m-1", candidate=Candidate(kind="base"), split="test", shard=shard, of=shards,
                    responses=ref, evaluators=names, rows=size,
                )
            )  # fmt: skip
        before = (await bus.js.stream_info(topology.EVENTS)).state.messages
        services = [
            evaluator_service(one.evaluator, service_settings(server, tmp_path / one.evaluator.name, "one"))
            for one in (fast, slow)
        ]
        async with serving(*services):
            await until(lambda: idle(bus, "evaluator-fast"), seconds=60)
            marks = await marks_by(bus)
            assert marks["fast"] == shards and marks["slow"] < shards
            info = await bus.js.consumer_info(topology.EVENTS, "evaluator-slow")
            assert (info.num_ack_pending or 0) <= 1 and slow.held <= size, "the rest waits on the server"
            slow.seconds = 0.0
            await until(lambda: idle(bus, "evaluator-slow"), seconds=60)
        assert await marks_by(bus) == {"fast": shards, "slow": shards}
        assert (await bus.js.stream_info(topology.EVENTS)).state.messages == before + 2 * shards


@pytest.mark.timeout(240)
async def test_two_migrations_share_a_trainer_an_evaluator_and_a_rate_limit(
    server: NatsServer, tmp_path: Path
) -> None:
    """Both end, the provider refuses nothing, and neither waits for the other's end."""
    rpm = 1_200
    async with (
        connected(server, tmp_path) as bus,
        emulator(rpm=rpm) as url,
        serving(*all_services(server, tmp_path)),
    ):
        llm = {"model": "openai:scripted-teacher", "base_url": url, "requests_per_minute": rpm}
        small = {"splits": {"train": 30, "validation": 12, "test": 60, "holdout": 30}, "service_llm": llm}
        specs = [spec_of(url, name=name, seed=number, **small) for number, name in enumerate(("one", "two"))]
        migrations = [await submit(bus, spec) for spec in specs]
        views = [
            await until(lambda one=one: ended(bus, one), seconds=200, what=f"the end of {one}")  # type: ignore[misc]
            for one in migrations
        ]
        for view in views:
            assert isinstance(view.ended, MigrationCompleted | MigrationStopped), view.ended
            assert isinstance(view.ended, MigrationCompleted) or view.ended.rule in ("rounds", "no_gain")
        spans: list[tuple[datetime, datetime]] = []
        for view in views:
            assert view.ended is not None
            spans.append((min(e.at for e in view.of_type(EvalScored)), view.ended.at))
        assert max(first for first, _ in spans) < min(end for _, end in spans), "neither waits for the other's end"
        async with aiohttp.ClientSession() as http:
            ledger = await (await http.get(url.removesuffix("/v1") + "/emulator/ledger")).json()
        assert ledger["totals"]["refused_429"] == 0 and ledger["totals"]["completed"] > 100, ledger["totals"]
