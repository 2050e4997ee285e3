"""The synthesizer on the bus: splits, has the service LLM answer prompts, and writes the next round's data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from llamaduo.artifacts import ArtifactStore, put_bytes, read_bytes
from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.datasets import Row, dataset_digest, dump_rows, load_rows
from llamaduo.errors import PermanentError, UserInputError
from llamaduo.event_parts import ArtifactRef, CallCounts, Split, WorkSpan
from llamaduo.events import (
    DatasetReady,
    EvalFailed,
    Event,
    MigrationRequested,
    ReferencesRequested,
    ResponsesGenerated,
)
from llamaduo.identity import content_digest
from llamaduo.migrations.next_step import Stop, after_failure
from llamaduo.migrations.planned_rows import rows_wanted
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.service_llm.on_bus import ClientOnBus
from llamaduo.tools_in_words import why_not_learnt
from services.synthesizer import metrics
from services.synthesizer.asking import joined_spans, total_counts
from services.synthesizer.merging import merge
from services.synthesizer.nearest import nearest_rows
from services.synthesizer.references import answer_prompts
from services.synthesizer.settings import SynthesizerSettings
from services.synthesizer.splitting import split_coverage
from services.synthesizer.synthesis import synthesize
from services.synthesizer.teacher import ServiceTeacher

log = logging.getLogger(__name__)

ROWS = "application/x-ndjson"


class Synthesizer:
    """The handlers and the client they share."""

    def __init__(self) -> None:
        self.client = ClientOnBus()

    async def next_data(self, event: MigrationRequested | EvalFailed, work: Work) -> Sequence[Event]:
        """Round 0 from the coverage dataset; a later round from what failed."""
        if isinstance(event, MigrationRequested):
            return [await first_round(event, await work.bus.artifacts())]
        await work.mirror.up_to(work.seq)
        return await self._after(event, work)

    async def _after(self, event: EvalFailed, work: Work) -> Sequence[Event]:
        view = await work.view(event.migration)
        if isinstance(step := after_failure(view, event.round), Stop):
            return []
        spec, data = view.spec, view.dataset(event.round)
        assert spec is not None and data is not None
        adapter = view.adapter(event.round, event.base)
        store = await work.bus.artifacts()
        splits = {name: load_rows(await read_bytes(store, ref)) for name, ref in data.splits.items()}
        await work.progress(event, "synthesizing", 0, rows_wanted(spec.synthesis, len(splits["train"])))
        new = await synthesize(
            splits=splits,
            failures=event.failures,
            spec=spec,
            migration=event.migration,
            round_number=step.round,
            weak=[one.row for one in adapter.weak] if adapter else [],
            teacher=ServiceTeacher(
                self.client.get(), spec.teacher_llm, spec.budgets, migration=event.migration, job=work.job
            ),
        )
        if new.problem is not None:
            raise PermanentError(new.problem)
        metrics.note_rows(len(new.rows), new.removed)
        splits["train"] = merge(splits["train"], new.rows)
        refs = {**data.splits, "train": await put_bytes(store, dump_rows(splits["train"]), ROWS)}
        return [
            ready(event.migration, step.round, splits, refs).model_copy(
                update={"added": len(new.rows), "removed": new.removed, "calls": new.counts, "work": new.work}
            )
        ]

    async def references(self, event: ReferencesRequested, work: Work) -> Sequence[Event]:
        """The service LLM's own answers to a shard of prompts, or those of the nearest train rows."""
        view = await work.view(event.migration)
        spec = view.spec
        assert spec is not None
        answered = ResponsesGenerated(**event.place(), responses=None, evaluators=event.evaluators)
        if not view.undecided(event.candidate, event.split):
            return [answered.model_copy(update={"skipped": True})]
        store = await work.bus.artifacts()
        rows = load_rows(await read_bytes(store, event.rows))
        rows = rows[event.shard * event.size : (event.shard + 1) * event.size]
        if event.candidate.kind == "nearest":
            first = view.dataset(0)
            train = load_rows(await read_bytes(store, first.splits["train"])) if first else []
            near = await asyncio.to_thread(nearest_rows, train, rows, event.answers_per_prompt)
            stored = await put_bytes(store, dump_rows(near), ROWS)
            metrics.REFERENCES.labels("nearest").inc(len(near))
            return [answered.model_copy(update={"responses": stored, "rows": len(near)})]
        teacher = ServiceTeacher(
            self.client.get(), spec.service_llm, spec.budgets, migration=event.migration, job=work.job
        )
        shard, answers = await answer_prompts(
            rows,
            teacher,
            migration=event.migration,
            samples=event.answers_per_prompt,
            max_tokens=event.max_tokens,
            temperature=event.temperature,
        )
        metrics.REFERENCES.labels("service_llm").inc(len(answers))
        counts: CallCounts = total_counts(answers)
        spans: list[WorkSpan] = joined_spans(answers)
        return [
            answered.model_copy(
                update={
                    "responses": await put_bytes(store, dump_rows(shard), ROWS),
                    "rows": len(shard),
                    "input_tokens": counts.input_tokens,
                    "output_tokens": counts.output_tokens,
                    "calls": counts,
                    "work": spans,
                }
            )
        ]


async def first_round(event: MigrationRequested, store: ArtifactStore) -> DatasetReady:
    """Split the coverage dataset. PermanentError where it is too small for what the spec asks."""
    spec = MigrationSpec.model_validate(event.spec)
    rows = load_rows(await read_bytes(store, event.coverage))
    if why := why_not_learnt(rows):
        # The command line refuses them; whoever asks past it must be told as well.
        raise PermanentError(f"the coverage dataset: {why[0]} ({why[1]})")
    try:
        splitted = await asyncio.to_thread(split_coverage, rows, spec.splits, spec.seed, spec.synthesis.near_copy)
    except UserInputError as error:
        raise PermanentError(str(error)) from error
    for note in splitted.notes:
        log.info("%s: %s", event.migration, note)
    refs = {name: await put_bytes(store, dump_rows(part), ROWS) for name, part in splitted.rows.items()}
    return ready(event.migration, 0, splitted.rows, refs)


def ready(
    migration: str, number: int, splits: dict[Split, list[Row]], refs: dict[Split, ArtifactRef]
) -> DatasetReady:
    """The event of a round's data."""
    return DatasetReady(
        migration=migration,
        round=number,
        splits=refs,
        rows={name: len(part) for name, part in splits.items()},
        digest=content_digest({name: dataset_digest(part) for name, part in splits.items()}),
    )


def build(settings: SynthesizerSettings) -> Service:
    """The synthesizer service."""
    synthesizer = Synthesizer()
    service = Service(
        "synthesizer",
        settings,
        roles={
            "synthesizer": (synthesizer.next_data, 1),
            "synthesizer-references": (synthesizer.references, settings.shards_at_once),
        },
    )
    service.on_open(synthesizer.client.open)
    service.on_close(synthesizer.client.close)
    service.counts_calls(synthesizer.client.bought_by)
    return service
