"""The trainer on the bus: a round's data in, its adapter out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from llamaduo.accelerator import WAITING, Accelerator
from llamaduo.artifacts import ArtifactStore
from llamaduo.base_models import ResolvedBase, resolve
from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.bus.kv import KeyValue
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.service import Service
from llamaduo.bus.work import is_done
from llamaduo.errors import PermanentError, UserInputError
from llamaduo.event_parts import Adapter, WeakRow, WorkSpan
from llamaduo.events import AdapterTrained, DatasetReady, Event, TrainingRequested
from llamaduo.identity import adapter_digest
from llamaduo.migrations.spec import MigrationSpec
from services.trainer.engine import TrainingEngine, TrainJob, TrainProgress, TrainResult
from services.trainer.fake_engine import FakeTrainingEngine
from services.trainer.metrics import counted, note_adapter
from services.trainer.previous_adapter import fetch_weights
from services.trainer.settings import TrainerSettings
from services.trainer.trl_engine import TrlEngine
from services.trainer.work_folders import WorkFolders

log = logging.getLogger(__name__)

TIDY_EVERY_S = 30.0


class Trainer:
    """The handler and its engine."""

    def __init__(self, settings: TrainerSettings, engine: TrainingEngine) -> None:
        self._settings, self._engine = settings, engine
        shared = settings.accelerator_dir
        self._accelerator = None if shared is None else Accelerator(shared, "trainer", settings.replica)
        self.folders = WorkFolders(settings.state_dir.resolve() / "training")

    async def train(self, event: DatasetReady | TrainingRequested, work: Work) -> Sequence[Event]:
        """Fine-tune on the round's data: the first base model, or the one that is asked for."""
        with self.folders.use(work.job) as folder:
            return await self._train(event, work, folder)

    async def _train(self, event: DatasetReady | TrainingRequested, work: Work, folder: Path) -> Sequence[Event]:
        number = event.base if isinstance(event, TrainingRequested) else 0
        if number or event.round:  # what was said of this round and the one before counts
            await work.mirror.up_to(work.seq)
        view = await work.view(event.migration)
        if view.decision(event.round) is not None:  # a smaller base model passed before this one's turn came
            return []
        spec, data = view.spec, event if isinstance(event, DatasetReady) else view.dataset(event.round)
        assert spec is not None
        if data is None:
            raise PermanentError(f"{event.migration} has no data of round {event.round}")
        store = await work.bus.artifacts()
        await clear(folder.parent, await work.bus.bucket("work"), work.role)
        base = await self._base(spec.bases[number])
        previous = None
        if spec.recipe.start == "previous" and event.round > 0:
            # None where this base model got no adapter in that round: then it begins anew.
            before = view.adapter(event.round - 1, number)
            previous = None if before is None else before.adapter
        job = await prepare(data, spec, base, store, folder, previous)
        loop = asyncio.get_running_loop()
        told: set[asyncio.Task[None]] = set()

        def tell(progress: TrainProgress) -> None:
            note = f"{base.name} " if len(spec.bases) > 1 else ""
            note += f"loss {progress.loss:.3f}" if progress.loss is not None else ""
            if progress.validation_loss is not None:
                note += f", validation {progress.validation_loss:.3f}"
            task = loop.create_task(work.progress(event, "training", progress.step, progress.steps, note))
            told.add(task)
            task.add_done_callback(told.discard)

        async def waits(holder: str) -> None:
            await work.progress(event, WAITING, 0, 1, f"held by {holder}")

        async with contextlib.nullcontext() if self._accelerator is None else self._accelerator.use(waits):
            result = await self._engine.train(job, counted(tell))
        note_adapter(result)
        trained = await announce(data, base, store, job, result, previous)
        return [trained.model_copy(update={"base": number})]

    async def tidy(self, _bus: Bus, _mirror: Mirror) -> None:
        """Remove what ended migrations left behind; goes on for ever."""
        while True:
            await self.folders.remove_ended()
            await asyncio.sleep(TIDY_EVERY_S)

    async def _base(self, name: str) -> ResolvedBase:
        if self._settings.training_engine == "fake":
            return ResolvedBase(name=name, folder=Path("fake"), digest="0" * 64)
        try:
            return await resolve(name, self._settings.state_dir.resolve() / "models")
        except UserInputError as error:
            raise PermanentError(str(error)) from error


async def clear(folder: Path, jobs: KeyValue, role: str) -> None:
    """Remove what jobs that are done have left. Not at their own end: until the commit a checkpoint may be needed."""
    for left in sorted(folder.iterdir()) if folder.is_dir() else []:
        if await is_done(jobs, f"{role}.{left.name}"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)


async def prepare(
    event: DatasetReady,
    spec: MigrationSpec,
    base: ResolvedBase,
    store: ArtifactStore,
    folder: Path,
    previous: Adapter | None = None,
) -> TrainJob:
    """The round's data on this machine's disk, as a job; the same folder again goes on where a kill stopped it.

    With `previous`, the job goes on from that adapter, at the recipe's rate for that; see `fetch_weights` for errors.
    """
    recipe = spec.recipe
    if previous is not None:
        recipe = recipe.model_copy(update={"learning_rate": recipe.learning_rate * recipe.continued_rate})
    paths = {}
    for split in ("train", "validation"):
        path = folder / f"{split}.jsonl"
        if event.rows.get(split):
            await store.fetch(event.splits[split], path)
            paths[split] = path
    return TrainJob(
        train=paths["train"],
        validation=paths.get("validation"),
        base_folder=base.folder,
        base_name=base.name,
        previous=None if previous is None else await fetch_weights(previous, base, recipe, store, folder),
        recipe=recipe,
        seed=spec.seed,
        tool_wording=spec.tool_wording,
        out=folder / "adapter",
        work=folder / "checkpoints",
    )


async def announce(
    event: DatasetReady,
    base: ResolvedBase,
    store: ArtifactStore,
    job: TrainJob,
    result: TrainResult,
    previous: Adapter | None = None,
) -> AdapterTrained:
    """Store the adapter's files and say how it was made."""
    files = {name: await store.put_file(job.out / name, "application/octet-stream") for name in result.files}
    adapter = Adapter(
        digest=adapter_digest(result.files),
        files=files,
        base_model=base.name,
        base_digest=base.digest,
        rank=job.recipe.rank,
        tool_wording=job.tool_wording,
    )
    return AdapterTrained(
        migration=event.migration,
        submission=event.submission,
        round=event.round,
        adapter=adapter,
        dataset=event.digest,
        recipe={**job.recipe.model_dump(mode="json"), "device": result.device, "precision_used": result.precision},
        steps=result.steps,
        best_step=result.best_step,
        loss=result.loss,
        validation_loss=result.validation_loss,
        continued_from=None if previous is None else previous.digest,
        preference=result.preference,
        rows_given=result.rows_given,
        rows_kept=result.rows_kept,
        rows_cut=result.rows_cut,
        label_tokens=result.label_tokens,
        seed=result.seed,
        versions=result.versions,
        weak=[WeakRow(row=row, loss=loss) for row, loss in result.weak],
        work=[WorkSpan(kind="training", began=result.began, ended=result.ended)],
    )


def build(settings: TrainerSettings) -> Service:
    """The trainer service."""
    if settings.training_engine == "fake":
        return _service(settings, FakeTrainingEngine(settings.fake_seconds))
    engine = TrlEngine(keep_spare=settings.keep_spare)

    async def warm_up(_bus: Bus, _mirror: Mirror) -> None:
        await engine.warm_up()

    service = _service(settings, engine)
    service.on_open(warm_up)
    service.on_close(engine.close)
    return service


def _service(settings: TrainerSettings, engine: TrainingEngine) -> Service:
    trainer = Trainer(settings, engine)
    service = Service("trainer", settings, roles={"trainer": (trainer.train, 1)})
    service.on_event(trainer.folders.take)
    service.in_background(trainer.tidy)
    return service
