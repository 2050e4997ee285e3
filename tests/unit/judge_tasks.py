"""Rows and tasks for tests of the judge's evaluators."""

from __future__ import annotations

from typing import Any

from llamaduo.datasets import Message, ShardRow
from llamaduo.evaluators import Task
from llamaduo.migrations.spec import MigrationSpec


def row(name: str, reference: str, *answers: str | None, prompt: str = "sort this ticket") -> ShardRow:
    """A row with one user message."""
    return ShardRow(
        row=name, messages=[Message(role="user", content=prompt)], reference=reference, answers=list(answers)
    )


def task(repeat: int = 0, *, job: str = "shard-1", options: dict[str, Any] | None = None, **changes: Any) -> Task:
    """The work in hand for a small spec."""
    spec: dict[str, Any] = {
        "name": "triage",
        "coverage": "tickets.jsonl",
        "base_model": "base",
        "service_llm": {"model": "openai:gpt-4o", "requests_per_minute": 60_000},
        "gate": {"absolute": {"llm-judge.precision": 70}},
    }
    return Task(
        migration="m1",
        spec=MigrationSpec.model_validate(spec | changes),
        candidate="round-0",
        split="test",
        shard=0,
        repeat=repeat,
        job=job,
        options=options or {},
    )
