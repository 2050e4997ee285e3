"""Inference on the bus: answers shards, promotes what passed, serves again after a restart what it served."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial

from llamaduo.artifacts import ArtifactStore, put_bytes, read_bytes
from llamaduo.bus.connection import Bus
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.service import Service
from llamaduo.bus.settling import Work
from llamaduo.datasets import dump_rows, load_rows
from llamaduo.errors import LlamaDuoError, PermanentError
from llamaduo.events import (
    Adapter,
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    EvalPassed,
    Event,
    PromoteRequested,
    ResponsesGenerated,
    ResponsesRequested,
    RollbackRequested,
    WorkSpan,
)
from llamaduo.migrations.fold import MigrationView
from services.inference.aliases import Aliases, before
from services.inference.answering import requests_for, shard_of, shard_rows
from services.inference.engine import AdapterFiles, InferenceEngine, served_name
from services.inference.engines import EngineRoom, fetch_adapter, make_engine
from services.inference.settings import InferenceSettings

log = logging.getLogger(__name__)

DEFAULT_RANK = 16


class Inference:
    """The handlers and what they share."""

    def __init__(self, settings: InferenceSettings) -> None:
        self.settings = settings
        self.room = EngineRoom(partial(make_engine, settings, self._refetch))
        self._adapters: dict[str, Adapter] = {}
        self._store: ArtifactStore | None = None
        self.aliases = Aliases()
        self._restored = False

    async def answer(self, event: ResponsesRequested, work: Work) -> Sequence[Event]:
        """One shard of prompts for the base or an adapter."""
        view = await work.view(event.migration)
        answered = ResponsesGenerated(**event.place(), responses=None, evaluators=event.evaluators)
        if not view.undecided(event.candidate, event.split):
            return [answered.model_copy(update={"skipped": True})]
        store = await work.bus.artifacts()
        rows = shard_of(load_rows(await read_bytes(store, event.rows)), event)
        spans: list[WorkSpan] = []
        loaded: list[Event] = []
        async with self._engine(view) as engine:
            model = None
            if event.candidate.adapter is not None:
                model, loaded = await self._load(event, event.candidate.adapter, engine, work, spans)
            began = datetime.now(UTC)
            generations = await engine.generate(requests_for(rows, event, model))
            spans.append(WorkSpan(kind="generation", began=began, ended=datetime.now(UTC)))
        body = dump_rows(shard_rows(rows, generations))
        generated = answered.model_copy(
            update={
                "responses": await put_bytes(store, body, "application/x-ndjson"),
                "rows": len(rows),
                "input_tokens": sum(g.prompt_tokens for g in generations),
                "output_tokens": sum(g.completion_tokens for g in generations),
                "work": spans,
            }
        )
        return [*loaded, generated]

    async def _load(
        self, event: Event, adapter: Adapter, engine: InferenceEngine, work: Work, spans: list[WorkSpan]
    ) -> tuple[str, list[Event]]:
        """Serve an adapter; its name and the event that says so."""
        number = _round_of(event)
        name = served_name(event.migration, number, adapter.digest)
        began = datetime.now(UTC)
        await self._serve(engine, await work.bus.artifacts(), adapter, name)
        spans.append(WorkSpan(kind="model_load", began=began, ended=datetime.now(UTC)))
        return name, [self._loaded(event, name, adapter, number, engine)]

    def _loaded(
        self, event: Event, name: str, adapter: Adapter, number: int, engine: InferenceEngine
    ) -> AdapterLoaded:
        """What says that this process, at its address, serves the adapter."""
        replica = self.settings.replica
        return AdapterLoaded(
            migration=event.migration,
            round=number,
            name=name,
            digest=adapter.digest,
            replica=replica,
            url=engine.base_url,
            source=f"inference/{replica}",
        )

    async def promote(self, event: EvalPassed | PromoteRequested | RollbackRequested, work: Work) -> Sequence[Event]:
        """Make the alias mean what passed, what an operator asked for, or what it meant before."""
        view = await work.view(event.migration)
        spec = view.spec
        assert spec is not None
        if isinstance(event, RollbackRequested):
            earlier = before(view, event.round)
            again: list[Event] = []
            if earlier is not None:
                async with self._engine(view) as engine:
                    _, again = await self._load(earlier, earlier.adapter, engine, work, [])
            return [
                *again,
                AdapterRolledBack(
                    migration=event.migration,
                    round=event.round,
                    alias=spec.name,
                    to=earlier.adapter if earlier else None,
                    by=event.by,
                    why=event.why,
                    command=event.command,
                ),
            ]
        if isinstance(event, EvalPassed):
            if spec.promotion != "auto":
                return []
            adapter, by, why, command = event.candidate.adapter, "verdict", f"round {event.round} passed", ""
        else:
            trained = view.adapter(event.round)
            adapter = trained.adapter if trained else None
            by, why, command = event.by, event.why, event.command
        if adapter is None:
            raise PermanentError(f"round {event.round} of {event.migration} has no adapter to promote")
        async with self._engine(view) as engine:
            name, loaded = await self._load(event, adapter, engine, work, [])
        promoted = AdapterPromoted(
            migration=event.migration,
            round=event.round,
            alias=spec.name,
            adapter=adapter,
            name=name,
            by=by,
            why=why,
            command=command,
        )
        return [*loaded, promoted]

    async def serve_again(self, bus: Bus, mirror: Mirror) -> None:
        """Start the engine before it is asked for, and load what the aliases mean; goes on for ever."""
        while True:
            try:
                await self._warm_up(bus, mirror)
            except LlamaDuoError as error:
                log.warning("the engine is not up yet: %s", error)
            await asyncio.sleep(1)

    async def _warm_up(self, bus: Bus, mirror: Mirror) -> None:
        if not self._restored:
            for serving in list(self.aliases.now.values()):
                promoted = serving.promoted
                rank = self.settings.max_rank or promoted.adapter.rank
                async with self.room.use(serving.base_model, rank) as engine:
                    await self._serve(engine, await bus.artifacts(), promoted.adapter, promoted.name)
                    await bus.publish(self._loaded(promoted, promoted.name, promoted.adapter, promoted.round, engine))
                log.info("serving %s again as %s", promoted.name, promoted.alias)
            self._restored = True
        if self.room.base_url:
            return
        view = next((v for v in mirror.open() if v.spec), None)
        if view is not None:
            async with self._engine(view):
                pass
        elif self.settings.base_model is not None:
            async with self.room.use(self.settings.base_model, self.settings.max_rank or DEFAULT_RANK):
                pass

    def _engine(self, view: MigrationView) -> AbstractAsyncContextManager[InferenceEngine]:
        """The engine that this migration needs."""
        assert view.spec is not None
        return self.room.use(view.spec.base_model, self.settings.max_rank or view.spec.recipe.rank)

    async def _serve(self, engine: InferenceEngine, store: ArtifactStore, adapter: Adapter, name: str) -> None:
        """Have the engine serve an adapter, and never drop what an alias means."""
        self._adapters[adapter.digest], self._store = adapter, store
        engine.pin(self.aliases.served)
        folder = self.settings.state_dir.resolve() / "adapters"
        await engine.load(await fetch_adapter(store, adapter, name, folder))

    async def _refetch(self, files: AdapterFiles) -> None:
        """Bring back an adapter's files that were lost from this machine's disk."""
        adapter = self._adapters.get(files.digest)
        if adapter is not None and self._store is not None:
            await asyncio.to_thread(shutil.rmtree, files.folder, ignore_errors=True)
            await fetch_adapter(self._store, adapter, files.name, files.folder.parent)

    def problem(self) -> str | None:
        """What keeps this replica from being ready."""
        return self.room.problem() or (None if self._restored else "adapters that were served are not loaded yet")


def _round_of(event: Event) -> int:
    candidate = getattr(event, "candidate", None)
    number = getattr(event, "round", None)
    if number is None and candidate is not None:
        number = candidate.round
    assert isinstance(number, int)
    return number


def build(settings: InferenceSettings) -> Service:
    """The inference service."""
    inference = Inference(settings)
    service = Service(
        "inference",
        settings,
        roles={
            "inference": (inference.answer, settings.shards_at_once),
            "inference-promotion": (inference.promote, 1),
        },
    )
    service.on_event(inference.aliases.take)
    service.in_background(inference.serve_again)
    service.ready_when(inference.problem)
    service.on_close(inference.room.close)
    return service
