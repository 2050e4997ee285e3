"""Inference on the bus: answers shards, promotes what passed, serves again after a restart what it served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.service import Service
from llamaduo.datasets import dump_rows, load_rows
from llamaduo.errors import LlamaDuoError, PermanentError
from llamaduo.event_parts import Adapter, WorkSpan
from llamaduo.events import (
    AdapterPromoted,
    AdapterRolledBack,
    EvalPassed,
    Event,
    PromoteRequested,
    ResponsesGenerated,
    ResponsesRequested,
    RollbackRequested,
    ServingMeasured,
    ServingRequested,
)
from llamaduo.migrations.fold import MigrationView
from services.inference import metrics
from services.inference.aliases import base_to_hold
from services.inference.answering import answers_cut, is_too_long, requests_for, shard_of, shard_rows
from services.inference.engine import InferenceEngine, served_name
from services.inference.engines import MakeEngine, make_engine
from services.inference.measuring import burst_requests, measure, warm_up
from services.inference.serving import ServedAdapters
from services.inference.settings import InferenceSettings

log = logging.getLogger(__name__)

DEFAULT_RANK = 16


LONGEST_PAUSE_S = 30.0


class Inference:
    """The handlers and what they share. `make` gives an engine that is not started, instead of the settings' own."""

    def __init__(self, settings: InferenceSettings, make: MakeEngine | None = None) -> None:
        self.settings = settings
        self.adapters = ServedAdapters(settings, make or self._make_engine)
        self.room, self.aliases = self.adapters.room, self.adapters.aliases

    async def _make_engine(self, base_model: str, rank: int) -> InferenceEngine:
        return await make_engine(self.settings, self.adapters.refetch, base_model, rank)

    async def answer(self, event: ResponsesRequested, work: Work) -> Sequence[Event]:
        """One shard of prompts for the base or an adapter."""
        view = await work.view(event.migration)
        assert view.spec is not None
        answered = ResponsesGenerated(**event.place(), responses=None, evaluators=event.evaluators)
        if not view.undecided(event.candidate, event.split):
            metrics.SHARDS.labels("skipped").inc()
            return [answered.model_copy(update={"skipped": True})]
        store = await work.bus.artifacts()
        rows = shard_of(load_rows(await read_bytes(store, event.rows)), event)
        spans: list[WorkSpan] = []
        loaded: list[Event] = []
        async with self._engine(view, event.candidate.base) as engine:
            model = None
            if event.candidate.adapter is not None:
                model, loaded = await self._load(event, event.candidate.adapter, engine, work, spans)
            began = datetime.now(UTC)
            generations = await engine.generate(requests_for(rows, event, model, view.spec.tool_wording))
            spans.append(WorkSpan(kind="generation", began=began, ended=datetime.now(UTC)))
        metrics.note_answers(event.candidate.kind, generations)
        body = dump_rows(shard_rows(rows, generations))
        generated = answered.model_copy(
            update={
                "responses": await put_bytes(store, body, "application/x-ndjson"),
                "rows": len(rows),
                "too_long": sum(is_too_long(generation) for generation in generations),
                "cut": answers_cut(generations),
                "input_tokens": sum(g.prompt_tokens for g in generations),
                "output_tokens": sum(g.completion_tokens for g in generations),
                "work": spans,
            }
        )
        return [*loaded, generated]

    async def measure(self, event: ServingRequested, work: Work) -> Sequence[Event]:
        """How fast this engine, with nothing else of ours to do, answers by the adapter as it will be served."""
        view = await work.view(event.migration)
        adapter = event.candidate.adapter
        if not view.undecided(event.candidate, "test") or adapter is None:
            return []
        rows = load_rows(await read_bytes(await work.bus.artifacts(), event.rows))
        spans: list[WorkSpan] = []
        async with self._engine(view, event.candidate.base, alone=True) as engine:
            model, loaded = await self._load(event, adapter, engine, work, spans)
            requests = burst_requests(rows, event, model)
            began = datetime.now(UTC)
            await measure(engine, warm_up(requests, event.concurrency), event.concurrency)
            burst = await measure(engine, requests, event.concurrency)
            spans.append(WorkSpan(kind="generation", began=began, ended=datetime.now(UTC)))
            url = engine.base_url
        measured = ServingMeasured(
            migration=event.migration,
            submission=event.submission,
            round=event.round,
            candidate=event.candidate,
            name=model,
            replica=self.settings.replica,
            url=url,
            concurrency=event.concurrency,
            asked=event.requests,
            seconds=burst.seconds,
            wall_s=burst.wall_s,
            too_long=burst.too_long,
            input_tokens=burst.input_tokens,
            output_tokens=burst.output_tokens,
            work=spans,
        )
        return [*loaded, measured]

    async def _load(
        self, event: Event, adapter: Adapter, engine: InferenceEngine, work: Work, spans: list[WorkSpan]
    ) -> tuple[str, list[Event]]:
        """Serve an adapter; its name and the event that says so."""
        number = _round_of(event)
        name = served_name(event.migration, number, adapter.digest)
        began = datetime.now(UTC)
        await self.adapters.load(engine, await work.bus.artifacts(), adapter, name)
        spans.append(WorkSpan(kind="model_load", began=began, ended=datetime.now(UTC)))
        return name, [self.adapters.announcement(event.migration, name, adapter, number, engine)]

    async def promote(self, event: EvalPassed | PromoteRequested | RollbackRequested, work: Work) -> Sequence[Event]:
        """Make the alias mean what passed, what an operator asked for, or what it meant before."""
        # Whatever was trained or promoted before this was asked must be known here.
        await work.mirror.up_to(work.seq)
        view = await work.view(event.migration)
        spec = view.spec
        assert spec is not None
        if isinstance(event, RollbackRequested):
            left = self.aliases.without(spec.name, event.migration, event.round)
            earlier = left[-1] if left else None
            again: list[Event] = []
            if earlier is not None:
                promoted = earlier.promoted
                async with self._engine_on(earlier.base_model, promoted.adapter.rank) as engine:
                    _, again = await self._load(promoted, promoted.adapter, engine, work, [])
            return [
                *again,
                AdapterRolledBack(
                    migration=event.migration,
                    round=event.round,
                    alias=spec.name,
                    to=earlier.promoted.adapter if earlier else None,
                    by=event.by,
                    why=event.why,
                    command=event.command,
                ),
            ]
        if isinstance(event, EvalPassed):
            if spec.promotion != "auto":
                return []
            adapter, by, why, command = event.candidate.adapter, "verdict", f"round {event.round} passed", ""
            base = event.candidate.base
        else:
            base = view.decided_base(event.round)
            trained = view.adapter(event.round, base)
            adapter = trained.adapter if trained else None
            by, why, command = event.by, event.why, event.command
        if adapter is None:
            raise PermanentError(f"round {event.round} of {event.migration} has no adapter to promote")
        async with self._engine(view, base) as engine:
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
            base=base,
        )
        return [*loaded, promoted]

    async def keep_serving(self, bus: Bus, mirror: Mirror) -> None:
        """Start the engine before it is asked for, and keep loaded what the aliases mean; goes on for ever."""
        pause = 1.0
        while True:
            try:
                await self.hold(mirror.open())
                done = await self.adapters.load_aliases(bus)
                await self.adapters.remove_ended()
            except LlamaDuoError as error:
                log.warning("the engine does not do what it should yet: %s", error)
                done = False
            pause = 1.0 if done else min(pause * 2, LONGEST_PAUSE_S)
            await asyncio.sleep(pause)

    async def share_accelerator(self, _bus: Bus, _mirror: Mirror) -> None:
        """Let a training have the accelerator while nothing is answered or served; goes on for ever."""
        while True:
            await self.room.give_way("".join(f"it serves alias {name}" for name in list(self.aliases.now)[-1:]))
            await asyncio.sleep(0.25)

    async def engine_metrics(self) -> str:
        """vLLM's own figures. RetryableError while it cannot be asked."""
        engine = self.room.engine
        return "" if engine is None else await engine.metrics()

    async def hold(self, under_way: Sequence[MigrationView]) -> None:
        """Have the engine hold the base model that it should while nobody asks for another."""
        if self.settings.accelerator_dir is not None:
            under_way = []  # their training comes first, and waits for the accelerator
        specs = [view.spec for view in under_way if _goes_on(view) and view.spec]
        ranks = {base: spec.recipe.rank for spec in specs for base in spec.bases}
        aliases = list(self.aliases.now.values())
        base = base_to_hold(
            self.room.base,
            idle=self.room.idle_s >= self.settings.return_after_s,
            needed=list(ranks),
            aliases=aliases,
            first=self.settings.base_model,
        )
        if base is not None and base != self.room.base and self.room.may_start():
            rank = ranks.get(base, 1 if self.aliases.of_base(base) else DEFAULT_RANK)
            async with self.room.use(base, self.adapters.rank_for(base, rank)):
                pass

    def _engine(
        self, view: MigrationView, base: int, *, alone: bool = False
    ) -> AbstractAsyncContextManager[InferenceEngine]:
        """The engine that this migration needs for one of its base models."""
        assert view.spec is not None
        return self._engine_on(view.spec.bases[base], view.spec.recipe.rank, alone=alone)

    def _engine_on(
        self, base_model: str, rank: int, *, alone: bool = False
    ) -> AbstractAsyncContextManager[InferenceEngine]:
        """The engine on a base model. PermanentError where an alias holds it and it must not be shared."""
        others = list(self.aliases.now.values())
        if others and not self.settings.share_engine and not self.aliases.of_base(base_model):
            raise PermanentError(
                f"the engine serves alias {others[-1].promoted.alias} on {others[-1].base_model} and does not change "
                f"to {base_model}: LLAMADUO_SHARE_ENGINE is off (turn it on, or roll the alias back)"
            )
        enter = self.room.alone if alone else self.room.use
        return enter(base_model, self.adapters.rank_for(base_model, rank))


def _goes_on(view: MigrationView) -> bool:
    """Whether this migration may ask for answers; one with a spec that cannot be read never does."""
    try:
        return view.spec is not None and not view.paused and view.cancel is None
    except PermanentError:
        return False


def _round_of(event: Event) -> int:
    candidate = getattr(event, "candidate", None)
    number = getattr(event, "round", None)
    if number is None and candidate is not None:
        number = candidate.round
    assert isinstance(number, int)
    return number


def build(settings: InferenceSettings, make: MakeEngine | None = None) -> Service:
    """The inference service; `make` gives another engine than the settings name."""
    inference = Inference(settings, make)
    service = Service(
        "inference",
        settings,
        roles={
            "inference": (inference.answer, settings.shards_at_once),
            "inference-serving": (inference.measure, 1),
            "inference-promotion": (inference.promote, 1),
        },
    )
    service.on_event(inference.adapters.take)
    service.in_background(inference.keep_serving)
    if settings.accelerator_dir is not None:
        service.in_background(inference.share_accelerator)
    service.ready_when(inference.adapters.problem)
    service.serves("/metrics/engine", inference.engine_metrics)
    service.on_close(inference.room.close)
    return service
