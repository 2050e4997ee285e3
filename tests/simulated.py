"""A whole migration in memory: the verdict's own `due` and plain stand-ins for everybody else. No bus."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from llamaduo.event_parts import Adapter, ArtifactRef, MetricRange, RowMark, WorkSpan
from llamaduo.events import (
    AdapterPromoted,
    AdapterTrained,
    AnyEvent,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MigrationRequested,
    OfShard,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    ServingMeasured,
    ServingRequested,
    TrainingRequested,
)
from llamaduo.identity import identity
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.next_step import NextRound, after_failure
from services.verdict.deciding import due

START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "name": "triage",
    "coverage": "tickets.jsonl",
    "base_model": "base",
    "service_llm": "openai:gpt-4o",
    "gate": {"absolute": {"exact-match.exact": 0.7}},
    "evaluators": ["exact-match"],
}

Skill = Callable[[str, int], float]
"""(candidate key, round) -> share of prompts answered rightly"""


def ref(name: str) -> ArtifactRef:
    """A reference to bytes that nobody reads here."""
    digest = identity("artifact", name)
    return ArtifactRef(uri=f"obj:{digest}", sha256=digest, size=1)


def requested(migration: str = "m-1", **spec: Any) -> MigrationRequested:
    """A submission with `SPEC`, changed by keyword."""
    return MigrationRequested(migration=migration, spec={**SPEC, **spec}, coverage=ref("coverage"), at=START)


def dataset(number: int, *, test: int = 200, holdout: int = 50, migration: str = "m-1") -> DatasetReady:
    """The data of a round."""
    rows = {"train": 30 + 150 * number, "validation": 20, "test": test, "holdout": holdout}
    splits = {name: ref(f"{name}-{number if name == 'train' else 0}") for name in rows}
    return DatasetReady.model_validate(
        {
            "migration": migration, "round": number, "splits": splits, "rows": rows,
            "digest": identity("data", number), "added": 150 if number else 0,
        }
    )  # fmt: skip


def trained(number: int, migration: str = "m-1", base: int = 0) -> AdapterTrained:
    """The adapter of a round, of the spec's base model `base`."""
    name = f"base-{base}" if base else "base"
    adapter = Adapter(
        digest=identity("adapter", number, *([base] if base else [])),
        files={"adapter_config.json": ref(f"adapter-{number}-{base}" if base else f"adapter-{number}")},
        base_model=name, base_digest=identity(name), rank=16,
    )  # fmt: skip
    return AdapterTrained(
        migration=migration, round=number, base=base, adapter=adapter, dataset=identity("data", number), recipe={},
        steps=100, best_step=80,
    )  # fmt: skip


def generated(asked: ResponsesRequested | ReferencesRequested) -> ResponsesGenerated:
    """The answers to a shard."""
    of_shard = {k: getattr(asked, k) for k in ("migration", "candidate", "split", "shard", "of")}
    return ResponsesGenerated(**of_shard, responses=ref(f"responses-{asked.id}"), rows=asked.size)


def measured(asked: ServingRequested, seconds: Sequence[float]) -> ServingMeasured:
    """A burst whose requests took so long, as if one had followed the other in each place."""
    return ServingMeasured(
        migration=asked.migration, round=asked.round, candidate=asked.candidate, name="m-1-r0", replica="one",
        concurrency=asked.concurrency, asked=asked.requests, seconds=list(seconds),
        wall_s=sum(seconds) / asked.concurrency, output_tokens=10 * len(seconds),
    )  # fmt: skip


def row_names(event: OfShard, size: int, rows: int) -> list[str]:
    """Ids of the rows in a shard."""
    return [f"{event.split}-{i}" for i in range(event.shard * size, min(rows, (event.shard + 1) * size))]


def scored(
    event: ResponsesGenerated,
    rows: Sequence[str],
    share: float,
    evaluator: str = "exact-match",
    metric: str = "exact",
) -> EvalScored:
    """Marks of a shard: a row is right if its own draw is below `share`, so more skill keeps what was right."""
    of_shard = {k: getattr(event, k) for k in ("migration", "candidate", "split", "shard", "of")}
    marks = [
        RowMark(
            row=row,
            metric=metric,
            value=float(random.Random(f"draw {row}").random() < share),
            reason="fields differ",
        )
        for row in rows
    ]
    return EvalScored(
        **of_shard, evaluator=evaluator, version="1", metrics={metric: MetricRange(low=0, high=1)}, marks=marks
    )


def simulate(
    skill: Skill,
    *,
    test: int = 200,
    holdout: int = 50,
    most: int = 5_000,
    seconds: Sequence[float] = (),
    **spec: Any,
) -> list[AnyEvent]:
    """The log of a migration that is played to its end (or `most` events).

    `seconds` are what each request takes where serving is measured, one after the other.
    """
    view = MigrationView("m-1")
    log: list[AnyEvent] = []
    now = START

    def say(event: Event) -> None:
        nonlocal now
        now += timedelta(seconds=1)
        stamped = event.model_copy(update={"at": now})
        if hasattr(stamped, "work"):
            span = WorkSpan(kind="marking", began=now - timedelta(seconds=0.5), ended=now)
            stamped = stamped.model_copy(update={"work": [span]})
        if view.add(stamped):  # type: ignore[arg-type]
            log.append(stamped)  # type: ignore[arg-type]

    say(requested(**spec))
    say(dataset(0, test=test, holdout=holdout))
    say(trained(0))
    while view.ended is None and len(log) < most:
        events = due(view, now)
        if not events:
            break
        for event in events:
            say(event)
            for answer in _answers(view, event, skill, test, holdout):
                say(answer)
            if isinstance(event, ServingRequested):
                say(measured(event, seconds))
    return log


def _answers(view: MigrationView, event: Event, skill: Skill, test: int, holdout: int) -> list[Event]:
    if isinstance(event, ResponsesRequested | ReferencesRequested):
        answer = generated(event)
        rows = row_names(event, event.size, test if event.split == "test" else holdout)
        assert view.spec is not None
        names = [choice.name for choice in view.spec.evaluators]
        share = skill(event.candidate.key, event.candidate.round or 0)
        return [answer, *(scored(answer, rows, share, name) for name in names)]
    if isinstance(event, TrainingRequested):
        return [trained(event.round, base=event.base)]
    if isinstance(event, EvalFailed):
        step = after_failure(view, event.round)
        return (
            [dataset(step.round, test=test, holdout=holdout), trained(step.round)]
            if isinstance(step, NextRound)
            else []
        )
    if isinstance(event, EvalPassed):
        assert event.candidate.adapter is not None
        return [
            AdapterPromoted(
                migration="m-1", round=event.round, base=event.base, alias="triage", adapter=event.candidate.adapter,
                name=f"m-1-r{event.round}", by="verdict", why="passed",
            )
        ]  # fmt: skip
    return []


def learner(*shares: float) -> Skill:
    """Skill by round; the base is always wrong, the service LLM nearly always right, a copied answer seldom."""

    def skill(candidate: str, number: int) -> float:
        if candidate.startswith("base") or candidate == "nearest":
            return 0.2 if candidate == "nearest" else 0.0
        return 0.98 if candidate == "service" else shares[min(number, len(shares) - 1)]

    return skill
