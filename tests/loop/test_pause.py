"""Pause, resume and cancel, in every service that does work: within seconds, and nothing is paid or done twice.

Each service is caught amid long work; what it does is counted where it cannot be told otherwise: at the provider, by
the emulator, and in the engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.bus.work import Record, claim
from llamaduo.events import (
    AdapterTrained,
    CancelRequested,
    EvalScored,
    MarksRequested,
    MigrationCancelled,
    PauseRequested,
    ReferencesRequested,
    ResponsesRequested,
    ResumeRequested,
    ServingRequested,
    TrainingRequested,
    WorkFailed,
)
from llamaduo.migrations.fold import fold
from services.inference.app import build as inference
from services.inference.fake_engine import FakeEngine
from services.inference.settings import InferenceSettings
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from services.synthesizer.app import build as synthesizer
from services.synthesizer.settings import SynthesizerSettings
from services.trainer.app import build as trainer
from services.trainer.fake_engine import FakeTrainingEngine
from services.trainer.settings import TrainerSettings
from services.verdict.app import build as verdict
from services.verdict.settings import VerdictSettings
from tests.loop.test_backup import completed
from tests.loop.test_loop import all_services, emulator, log_of, spec_of, submit
from tests.loop.test_settling import Trainer, dataset, seen
from tests.loop.test_settling import trainer as training
from tests.support import NatsServer, connected, nats_server, serving, until

WITHIN_S = 10.0
"""Of a pause or cancel, on a busy machine, with a request under way and the second that is looked at."""


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


class Count:
    """How much one kind of work has been done."""

    def __init__(self) -> None:
        self.done = 0

    async def __call__(self) -> int:
        return self.done


def counted_training(monkeypatch: pytest.MonkeyPatch) -> Count:
    count, train = Count(), FakeTrainingEngine.train

    async def counting(engine: FakeTrainingEngine, job: Any, on_progress: Callable[[Any], None]) -> Any:
        def step(progress: Any) -> None:
            count.done += 1
            on_progress(progress)

        return await train(engine, job, step)

    monkeypatch.setattr(FakeTrainingEngine, "train", counting)
    return count


def counted_answers(monkeypatch: pytest.MonkeyPatch) -> Count:
    count, answer = Count(), FakeEngine._answer

    def counting(engine: FakeEngine, prompt: Any) -> Any:
        count.done += 1
        return answer(engine, prompt)

    monkeypatch.setattr(FakeEngine, "_answer", counting)
    return count


async def still(count: Callable[[], Awaitable[int]]) -> bool:
    """Whether nothing was done for a second."""
    before = await count()
    await asyncio.sleep(1)  # that nothing happens in it is what is looked at
    return await count() == before


@pytest.mark.parametrize("slow", ["synthesizer", "trainer", "inference", "judge"])
async def test_work_in_hand_stops_goes_on_and_stops_for_good(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    common: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}

    def of(name: str) -> dict[str, Any]:
        return {**common, "replica": name, "state_dir": tmp_path / name}

    services = [
        verdict(VerdictSettings(**of("verdict"))),
        synthesizer(SynthesizerSettings(**of("synthesizer"))),
        trainer(
            TrainerSettings(**of("trainer"), training_engine="fake", fake_seconds=60 if slow == "trainer" else 0)
        ),
        inference(
            InferenceSettings(
                **of("inference"), inference_engine="fake", fake_delay_s=0.2 if slow == "inference" else 0
            )
        ),
        judge(JudgeSettings(**of("exact"), evaluator="exact-match")),
        judge(JudgeSettings(**of("llm"), evaluator="llm-judge")),
    ]
    async with AsyncExitStack() as stack:
        teacher = await stack.enter_async_context(emulator(latency_ms=200 if slow == "synthesizer" else 0))
        judging = await stack.enter_async_context(emulator(latency_ms=200 if slow == "judge" else 0))
        bus = await stack.enter_async_context(connected(server, tmp_path))
        await stack.enter_async_context(serving(*services))

        async def calls() -> int:
            return sum((await completed(judging if slow == "judge" else teacher)).values())

        steps, answers = counted_training(monkeypatch), counted_answers(monkeypatch)
        work = {"trainer": steps, "inference": answers}.get(slow, calls)
        marks = {
            "model": "openai:scripted-teacher",
            "base_url": judging,
            "concurrency": 2,
            "requests_per_minute": 60_000,
        }
        spec = spec_of(teacher, judge=marks, recipe={"steps": 300}, evaluators=["exact-match", {"name": "llm-judge"}])
        if slow == "synthesizer":
            spec = spec.model_copy(update={"service_llm": spec.service_llm.model_copy(update={"concurrency": 2})})
        migration = await submit(bus, spec)

        async def more_than(least: int) -> bool:
            return await work() > least

        await until(lambda: more_than(8), seconds=90, what=f"{slow} at work")
        await bus.publish(PauseRequested(migration=migration, command="pause-01"))
        await until(lambda: still(work), seconds=WITHIN_S, what=f"{slow} stands still")
        done = await work()
        assert await still(work) and await work() == done
        assert fold(await log_of(bus, migration)).stage == "paused"
        await bus.publish(ResumeRequested(migration=migration, command="resume-01"))
        await until(lambda: more_than(done + 4), seconds=30, what=f"{slow} at work again")
        await bus.publish(CancelRequested(migration=migration, command="cancel-01"))

        async def cancelled() -> bool:
            return isinstance(fold(await log_of(bus, migration)).ended, MigrationCancelled)

        await until(cancelled, seconds=WITHIN_S, what="the end")
        await until(lambda: still(work), seconds=WITHIN_S, what=f"{slow} stands still")
        assert set((await completed(teacher)).values()) | set((await completed(judging)).values()) == {1}
        await nobody_counted_a_try(bus, migration)


async def nobody_counted_a_try(bus: Bus, migration: str) -> None:
    assert not await list_dead(bus)
    assert not any(isinstance(event, WorkFailed) for event in await log_of(bus, migration))
    work = await bus.bucket("work")
    records = [await work.get(key) for key in await work.keys("")]
    assert max(Record.model_validate_json(entry.value).failures for entry in records if entry is not None) <= 1


async def test_the_verdict_of_a_paused_migration_sets_nothing_off_and_a_cancel_ends_it(
    server: NatsServer, tmp_path: Path
) -> None:
    """It may hear of what was finished before the pause, and asks; nobody takes that up."""
    services = all_services(server, tmp_path)
    async with emulator(latency_ms=20) as url, connected(server, tmp_path) as bus, serving(*services):
        migration = await submit(bus, spec_of(url))

        async def marked() -> bool:
            return any(isinstance(event, EvalScored) for event in await log_of(bus, migration))

        await until(marked, seconds=60)
        await bus.publish(PauseRequested(migration=migration, command="pause-01"))

        async def results() -> int:
            wishes = (ResponsesRequested, ReferencesRequested, MarksRequested, TrainingRequested, ServingRequested)
            return sum(not isinstance(event, wishes) for event in await log_of(bus, migration))

        await until(lambda: still(results), seconds=WITHIN_S, what="all stand still")
        assert await still(results)
        await bus.publish(CancelRequested(migration=migration, command="cancel-01"))

        async def cancelled() -> bool:
            return isinstance(fold(await log_of(bus, migration)).ended, MigrationCancelled)

        await until(cancelled, seconds=WITHIN_S, what="the end")
        await nobody_counted_a_try(bus, migration)


async def test_a_pause_that_comes_while_a_job_is_claimed_stops_it(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, folded, claims = Trainer(0.1), asyncio.Event(), 0

    async def claim_slowly(*given: Any, **named: Any) -> Any:
        nonlocal claims
        claims += 1
        lease = await claim(*given, **named)
        if claims == 1:
            await bus.publish(PauseRequested(migration="m-1", command="pause-01"))
            await folded.wait()
        return lease

    monkeypatch.setattr("llamaduo.bus.settling.claim", claim_slowly)
    service = training(server, tmp_path, handler)
    service.on_event(lambda event: folded.set() if isinstance(event, PauseRequested) else None)
    async with connected(server, tmp_path) as bus, serving(service):
        await bus.publish(dataset())
        await asyncio.wait_for(folded.wait(), 20)

        async def handed_back() -> bool:
            entry = await (await bus.bucket("work")).get(f"trainer.{dataset().id}")
            return entry is not None and Record.model_validate_json(entry.value).releases == 1

        await until(handed_back)
        assert await seen(bus, AdapterTrained) is None
        await bus.publish(ResumeRequested(migration="m-1", command="resume-01"))
        await until(lambda: seen(bus, AdapterTrained))
