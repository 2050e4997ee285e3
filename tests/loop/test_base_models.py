"""Several base models on a real server: two trainer replicas train side by side, the smallest that passes wins."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaduo.events import (
    AdapterTrained,
    EvalPassed,
    MigrationCompleted,
    ResponsesRequested,
)
from llamaduo.migrations.fold import MigrationView
from services.inference import app as inference_app
from services.inference.fake_engine import FakeEngine
from services.trainer import app as trainer_app
from services.trainer.engine import TrainJob, TrainProgress, TrainResult
from services.trainer.fake_engine import FakeTrainingEngine
from services.trainer.settings import TrainerSettings
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import NatsServer, connected, nats_server, serving, until

SKILLS = {"owner/poor": 0.3, "owner/good": 0.95, "owner/better": 0.98}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Base models that an engine was made for, in order; what each can learn is in `SKILLS`."""
    made: list[str] = []

    async def make(_settings: Any, _refetch: Any, base_model: str, _rank: int) -> FakeEngine:
        made.append(base_model)
        return FakeEngine(skill=lambda _rows: SKILLS[base_model])

    monkeypatch.setattr(inference_app, "make_engine", make)
    return made


class SideBySide(FakeTrainingEngine):
    """Trains no base model before another one is in hand, too."""

    begun: set[str | None]
    both: asyncio.Event

    async def train(self, job: TrainJob, on_progress: Callable[[TrainProgress], None]) -> TrainResult:
        self.begun.add(job.base_name)
        if len(self.begun) == 2:
            self.both.set()
        await asyncio.wait_for(self.both.wait(), 60)
        return await super().train(job, on_progress)


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    SideBySide.begun, SideBySide.both = set(), asyncio.Event()
    monkeypatch.setattr(trainer_app, "FakeTrainingEngine", SideBySide)


async def migrated(server: NatsServer, folder: Path, bases: list[str]) -> MigrationView:
    """A migration on these base models, to its end, with two trainers."""
    common: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}
    trainers = [
        trainer_app.build(TrainerSettings(**common, replica=name, state_dir=folder / name, training_engine="fake"))
        for name in ("trainer-1", "trainer-2")
    ]
    others = [service for service in all_services(server, folder) if service.name != "trainer"]
    async with connected(server, folder) as bus, emulator() as url, serving(*others, *trainers):
        small = {"splits": {"train": 30, "validation": 24, "test": 75, "holdout": 25}, "evaluators": ["exact-match"]}
        spec = spec_of(url, base_model="", base_models=bases, marking={"failures_wanted": 5}, **small)
        migration = await submit(bus, spec)
        return await until(lambda: ended(bus, migration), seconds=90, what="the end")


def answered(view: MigrationView) -> set[str]:
    return {e.candidate.key for e in view.of_type(ResponsesRequested) if e.candidate.kind == "adapter"}


async def test_the_smaller_one_fails_and_the_larger_one_is_served(
    server: NatsServer, tmp_path: Path, engines: list[str], side_by_side: None
) -> None:
    view = await migrated(server, tmp_path, ["owner/poor", "owner/good"])
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert isinstance(view.passed, EvalPassed) and (view.passed.round, view.passed.base) == (0, 1)
    assert [one.verdict for one in view.passed.bases] == ["failed", "passed"]
    trained = {e.base: e for e in view.of_type(AdapterTrained)}
    assert trained[0].adapter.base_model == "owner/poor" and trained[1].adapter.base_model == "owner/good"
    assert trained[0].source != trained[1].source
    assert view.alias is not None and view.alias.type == "adapter.promoted"
    assert view.alias.adapter == trained[1].adapter and view.alias.base == 1
    assert engines == ["owner/poor", "owner/good"]  # changed once, and stays on what is served
    once = Counter(type(e).__name__ + str(e.job_key()) for e in view.events.values())
    assert set(once.values()) == {1}


async def test_the_smaller_one_passes_and_nobody_asks_the_larger_one(
    server: NatsServer, tmp_path: Path, engines: list[str], side_by_side: None
) -> None:
    view = await migrated(server, tmp_path, ["owner/good", "owner/better"])
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert isinstance(view.passed, EvalPassed) and view.passed.base == 0
    assert answered(view) == {"round-0"} and engines == ["owner/good"]
