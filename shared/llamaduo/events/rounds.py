"""A migration from its submission to its end: rounds, their data, adapters and decisions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from llamaduo.event_parts import (
    Adapter,
    ArtifactRef,
    BaseVerdict,
    CallCounts,
    Candidate,
    FailingRow,
    Marks,
    PreferenceTraining,
    Sha256,
    Split,
    WeakRow,
    WorkSpan,
)
from llamaduo.events.base import Event, OfRound


class MigrationRequested(Event):
    """A migration was submitted: the frozen spec and the coverage dataset."""

    type: Literal["migration.requested"] = "migration.requested"
    spec: dict[str, Any]
    coverage: ArtifactRef
    parent: str | None = None


class DatasetReady(OfRound):
    """A round's data: refs to the splits, what was added and what the filters removed."""

    type: Literal["dataset.ready"] = "dataset.ready"
    splits: dict[Split, ArtifactRef]
    rows: dict[Split, int]
    digest: Sha256 = Field(description="over the sorted content of all splits")
    added: int = Field(0, description="generated rows new in this round")
    removed: dict[str, int] = Field(default_factory=dict, description="generated rows dropped, by filter")
    calls: CallCounts = CallCounts()
    work: list[WorkSpan] = Field(default_factory=list)


class TrainingRequested(OfRound):
    """Train another base model than the first on a round's data, where the spec has several.

    The first needs no such wish: `dataset.ready` sets off its training.
    """

    type: Literal["training.requested"] = "training.requested"
    base: int = Field(ge=1, description="which of the spec's base models, from 0")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.base)


class AdapterTrained(OfRound):
    """A round's adapter and how it was made."""

    type: Literal["adapter.trained"] = "adapter.trained"
    adapter: Adapter
    base: int = Field(0, ge=0, description="which of the spec's base models it was trained from; 0: the first")
    dataset: Sha256
    recipe: dict[str, Any]
    steps: int
    best_step: int
    loss: float | None = None
    validation_loss: float | None = None
    continued_from: Sha256 | None = Field(
        None, description="digest of the adapter that training went on from; None: a new one on the base model"
    )
    preference: PreferenceTraining | None = Field(None, description="None: the recipe asks for none")
    rows_given: int = 0
    rows_kept: int = 0
    rows_cut: int = 0
    label_tokens: int = 0
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    weak: list[WeakRow] = Field(default_factory=list, description="the rows with the highest loss, that first")
    work: list[WorkSpan] = Field(default_factory=list)

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.base) if self.base else (self.round,)


class RoundDecided(OfRound):
    """A round's verdict on the test split."""

    answers: ClassVar[str | None] = "eval.decided"
    verdict: Literal["passed", "failed", "undecided"]
    marks: Marks
    gate: dict[str, Any]
    rows: int = Field(description="test prompts marked when it was decided")
    sure_after: int = Field(0, description="test prompts after which it was certain; 0: it never was, or not told")
    note: str = ""
    base: int = Field(0, ge=0, description="which base model this is about: the one that passed, else the best one")
    bases: list[BaseVerdict] = Field(
        default_factory=list, description="where the spec has several: each that was looked at"
    )


class EvalFailed(RoundDecided):
    """The round did not pass: failed for sure, or undecided."""

    type: Literal["eval.failed"] = "eval.failed"
    failures: list[FailingRow] = Field(default_factory=list)


class EvalPassed(RoundDecided):
    """The round passed its gate on the test split."""

    type: Literal["eval.passed"] = "eval.passed"
    candidate: Candidate


class MigrationEnded(Event):
    """The one end of a migration, published by the verdict alone."""

    answers: ClassVar[str | None] = "migration.ended"
    round: int | None = None
    reason: str = ""


class MigrationCompleted(MigrationEnded):
    """A round passed; its holdout marks stand beside the test marks."""

    type: Literal["migration.completed"] = "migration.completed"
    marks: Marks = Field(default_factory=dict)
    holdout: Marks = Field(default_factory=dict)


class MigrationStopped(MigrationEnded):
    """Ended without a pass by a named rule."""

    type: Literal["migration.stopped"] = "migration.stopped"
    rule: Literal["rounds", "budget", "hours", "no_gain", "serving", "silent_evaluator", "error"]


class MigrationCancelled(MigrationEnded):
    """An operator ended it."""

    type: Literal["migration.cancelled"] = "migration.cancelled"
