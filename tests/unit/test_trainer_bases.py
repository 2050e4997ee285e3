"""The trainer's job of one of several base models: which one it trains, and when it need not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaduo.artifacts import ArtifactStore, ObjectStoreArtifacts, put_bytes
from llamaduo.bus.desk import Work
from llamaduo.datasets import Message, dump_rows, make_row
from llamaduo.errors import PermanentError
from llamaduo.event_parts import Candidate
from llamaduo.events import AdapterTrained, AnyEvent, DatasetReady, EvalPassed, Event, TrainingRequested
from llamaduo.migrations.fold import fold
from services.trainer.app import Trainer
from services.trainer.fake_engine import FakeTrainingEngine
from services.trainer.settings import TrainerSettings
from tests.simulated import dataset, requested

TWO = requested(base_model="", base_models=["owner/a", "owner/b"], recipe={"steps": 2})
LARGER = TrainingRequested(migration="m-1", round=0, base=1)


async def data_in(store: ArtifactStore) -> DatasetReady:
    rows = [
        make_row([Message(role="user", content=f"question {i}"), Message(role="assistant", content="yes")])
        for i in range(4)
    ]
    ref = await put_bytes(store, dump_rows(rows), "application/x-ndjson")
    return dataset(0).model_copy(update={"splits": {"train": ref, "validation": ref}})


async def trained(folder: Path, event: DatasetReady | TrainingRequested, *log: AnyEvent) -> list[Event]:
    """What the handler says to a job, with this log."""
    store = ObjectStoreArtifacts(f"file://{folder}/store")

    async def artifacts() -> ArtifactStore:
        return store

    async def nothing(*_: object) -> Any:
        return None

    async def view(_migration: str) -> Any:
        return fold(log)

    async def jobs(_name: str) -> Any:
        return SimpleNamespace(get=nothing)

    mirror, bus = SimpleNamespace(up_to=nothing), SimpleNamespace(artifacts=artifacts, bucket=jobs)
    work = SimpleNamespace(view=view, mirror=mirror, bus=bus, job=event.id, role="trainer", seq=1, progress=nothing)
    trainer = Trainer(TrainerSettings(state_dir=folder, training_engine="fake"), FakeTrainingEngine(0))
    return list(await trainer.train(event, cast("Work", work)))


async def test_each_job_trains_its_own_base_model(tmp_path: Path) -> None:
    data = await data_in(ObjectStoreArtifacts(f"file://{tmp_path}/store"))
    (first,), (other,) = [await trained(tmp_path, job, TWO, data, LARGER) for job in (data, LARGER)]
    assert isinstance(first, AdapterTrained) and isinstance(other, AdapterTrained)
    assert (first.base, first.adapter.base_model) == (0, "owner/a")
    assert (other.base, other.adapter.base_model) == (1, "owner/b")
    assert first.id != other.id and first.dataset == other.dataset == data.digest
    (again,) = await trained(tmp_path, LARGER, TWO, data, LARGER)  # delivered twice: the same event
    assert isinstance(again, AdapterTrained) and (again.id, again.adapter) == (other.id, other.adapter)


async def test_one_whose_round_is_decided_is_not_trained_any_more(tmp_path: Path) -> None:
    data = await data_in(ObjectStoreArtifacts(f"file://{tmp_path}/store"))
    winner = Candidate(kind="adapter", round=0)
    passed = EvalPassed(migration="m-1", round=0, verdict="passed", marks={}, gate={}, rows=1, candidate=winner)
    assert await trained(tmp_path, LARGER, TWO, data, LARGER, passed) == []


async def test_one_whose_data_nobody_has_made_is_given_up_at_once(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="no data of round 0"):
        await trained(tmp_path, LARGER, TWO, LARGER)
