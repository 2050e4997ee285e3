"""A made-up but complete event log of a migration: round 0 fails, round 1 passes, with times and calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from llamaduo.event_parts import (
    Adapter,
    ArtifactRef,
    CallCounts,
    Candidate,
    FailingRow,
    Interval,
    MetricRange,
    RowMark,
    WorkSpan,
)
from llamaduo.events import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterTrained,
    AnyEvent,
    BudgetRefused,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    MigrationCompleted,
    MigrationRequested,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    WorkFailed,
)

START = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
MIGRATION = "m-0123456789abcdef"
ROWS = 8
SHARD = 4
Kind = Literal["training", "generation", "service_llm", "model_load", "marking"]

SPEC: dict[str, Any] = {
    "name": "support-triage",
    "coverage": "tickets.jsonl",
    "base_model": "models/tiny",
    "service_llm": {"model": "openai:gpt-x", "base_url": "http://user:hunter2@127.0.0.1:8010/v1?key=hunter2"},
    "evaluators": ["exact-match", {"name": "llm-judge", "role": "advisory"}],
    "gate": {"absolute": {"exact-match.exact": 0.7}},
    "costs": {"machine_hour": 3.6},
}


def at(second: float) -> datetime:
    """A moment, in seconds after the request."""
    return START + timedelta(seconds=second)


def ref(fill: str = "a") -> ArtifactRef:
    """A reference to nothing."""
    return ArtifactRef(uri=f"obj:{fill * 64}", sha256=fill * 64, size=10)


def span(kind: Kind, began: float, ended: float) -> WorkSpan:
    """A work interval in seconds after the request."""
    return WorkSpan(kind=kind, began=at(began), ended=at(ended))


def adapter(number: int) -> Adapter:
    """The adapter of a round."""
    return Adapter(
        digest=str(number) * 64, files={"a.safetensors": ref()}, base_model="tiny", base_digest="b" * 64, rank=8
    )


def candidate(key: str) -> Candidate:
    """A candidate by its key."""
    if key.startswith("round-"):
        number = int(key.removeprefix("round-"))
        return Candidate(kind="adapter", round=number, adapter=adapter(number))
    return Candidate(kind="base" if key == "base" else "service")


def marked(key: str, right: int, began: float, *, split: Literal["test", "holdout"] = "test") -> list[AnyEvent]:
    """Questions, answers and marks of both evaluators for two shards, the first `right` rows right."""
    events: list[AnyEvent] = []
    for shard in range(ROWS // SHARD):
        start = began + 2 * shard
        about: dict[str, Any] = {
            "migration": MIGRATION,
            "candidate": candidate(key),
            "split": split,
            "shard": shard,
            "of": ROWS // SHARD,
        }
        ask = ReferencesRequested if key == "service" else ResponsesRequested
        asked: AnyEvent = ask(at=at(start), rows=ref(), size=SHARD, evaluators=["exact-match"], **about)
        answer_kind: Kind = "service_llm" if key == "service" else "generation"
        answered = ResponsesGenerated(
            at=at(start + 1),
            responses=ref(),
            rows=SHARD,
            calls=CallCounts(made=SHARD if key == "service" else 0),
            work=[span(answer_kind, start, start + 1)],
            **about,
        )
        rows = [f"row-{shard * SHARD + i}" for i in range(SHARD)]
        exact = EvalScored(
            at=at(start + 1.5),
            evaluator="exact-match",
            version="1",
            metrics={"exact": MetricRange()},
            marks=[
                RowMark(row=row, metric="exact", value=1.0 if shard * SHARD + i < right else 0.0)
                for i, row in enumerate(rows)
            ],
            work=[span("marking", start + 1, start + 1.5)],
            **about,
        )
        judge = EvalScored(
            at=at(start + 2),
            evaluator="llm-judge",
            version="2",
            metrics={"similarity": MetricRange(high=100)},
            marks=[
                RowMark(row=row, metric="similarity", value=None if i == 0 else 80.0, reason="too short")
                for i, row in enumerate(rows)
            ],
            calls=CallCounts(made=3, from_ledger=1, rebought=1 if shard == 0 and key == "base" else 0, money=0.01),
            work=[span("service_llm", start + 1, start + 2)],
            **about,
        )
        events += [asked, answered, exact, judge]
    return events


def a_round(number: int, began: float, right: int) -> list[AnyEvent]:
    """Data, adapter and marks of a round that takes 20 seconds of work from `began` on."""
    data = DatasetReady(
        migration=MIGRATION,
        at=at(began + 4),
        round=number,
        splits={"train": ref(), "test": ref()},
        rows={"train": 30 + 100 * number, "test": ROWS},
        digest=str(number) * 64,
        added=100 * number,
        removed={"near_copy": 7, "contamination": 2} if number else {},
        calls=CallCounts(made=10 * number),
        work=[span("service_llm", began, began + 4)] if number else [],
    )
    trained = AdapterTrained(
        migration=MIGRATION,
        at=at(began + 14),
        round=number,
        adapter=adapter(number),
        dataset=str(number) * 64,
        recipe={},
        steps=80,
        best_step=60,
        loss=0.1,
        validation_loss=0.2,
        rows_given=30,
        rows_kept=29,
        rows_cut=1,
        label_tokens=900,
        seed=1,
        versions={"trl": "1.16.0"},
        work=[span("training", began + 5, began + 14)],
    )
    return [data, trained, *marked(f"round-{number}", right, began + 15)]


def complete_log() -> list[AnyEvent]:
    """Every event of the migration in the order of publication."""
    gate = {"absolute": {"exact-match.exact": 0.7}}
    failed = EvalFailed(
        migration=MIGRATION,
        at=at(40),
        round=0,
        verdict="failed",
        marks={"exact-match": {"exact": Interval(mean=0.25, low=0.05, high=0.6, n=8)}},
        gate=gate,
        rows=8,
        failures=[FailingRow(row="row-7", mark=0.0, reasons=["<script>alert(1)</script>"])],
    )
    passed = EvalPassed(
        migration=MIGRATION,
        at=at(60),
        round=1,
        verdict="passed",
        marks={"exact-match": {"exact": Interval(mean=1.0, low=0.72, high=1.0, n=8)}},
        gate=gate,
        rows=8,
        candidate=candidate("round-1"),
    )
    served = AdapterPromoted(
        migration=MIGRATION,
        at=at(65),
        round=1,
        alias="support-triage",
        adapter=adapter(1),
        name=f"{MIGRATION}-r1-11111111",
        by="inference",
        why="passed its gate",
    )
    loaded = AdapterLoaded(
        migration=MIGRATION,
        at=at(66),
        round=1,
        name=served.name,
        digest=served.adapter.digest,
        replica="one",
        url="http://127.0.0.1:8001/v1",
    )
    return [
        MigrationRequested(migration=MIGRATION, at=START, spec=SPEC, coverage=ref("c")),
        *a_round(0, 2, right=2),
        *marked("base", 0, 24),
        *marked("service", 8, 28),
        failed,
        *a_round(1, 40, right=8),
        passed,
        served,
        loaded,
        *marked("round-1", 7, 61, split="holdout"),
        MigrationCompleted(migration=MIGRATION, at=at(70), round=1, marks=passed.marks, reason="round 1 passed"),
    ]


def mishaps() -> list[AnyEvent]:
    """A dead letter and a refused budget."""
    return [
        WorkFailed(
            migration=MIGRATION,
            at=at(30),
            consumer="trainer",
            subject="dataset.ready",
            job="j",
            error="out of memory",
            attempts=3,
            dead_letter="dl-7",
        ),
        BudgetRefused(migration=MIGRATION, at=at(31), what="money", limit=1.0, spent=0.99, job="j"),
    ]
