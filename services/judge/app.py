"""The judge on the bus: one evaluator, its own process and durable."""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.bus.service import Service
from llamaduo.datasets import ShardRow
from llamaduo.evaluating import evaluator_service
from llamaduo.evaluators import FREE, Evaluator, Score, Scored, Task
from llamaduo.service_llm.on_bus import ClientOnBus
from services.judge.catalogue import make
from services.judge.settings import JudgeSettings


def build(settings: JudgeSettings) -> Service:
    """The evaluator that the settings name, as a service."""
    late = ClientOnBus()
    declared = make(settings.evaluator, None)

    async def score(rows: Sequence[ShardRow], task: Task) -> list[Score] | Scored:
        client = late.get() if declared.cost_per_row != FREE else None
        return await make(settings.evaluator, client).score(rows, task)

    service = evaluator_service(
        Evaluator(
            name=declared.name,
            version=declared.version,
            metrics=declared.metrics,
            score=score,
            cost_per_row=declared.cost_per_row,
            concurrency=max(declared.concurrency, settings.shards_at_once),
            noisy=declared.noisy,
        ),
        settings,
    )
    if declared.cost_per_row != FREE:  # others have no right to the buckets of ledger and budget
        service.on_open(late.open)
        service.on_close(late.close)
        service.counts_calls(late.bought_by)
    return service
