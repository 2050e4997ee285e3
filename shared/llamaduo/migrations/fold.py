"""A migration's state as a pure function of its events: `fold(events) -> MigrationView`.

The view keeps the first event of each id and derives everything else, so repeats change nothing and the order of
independent events does not matter. CLI, report, stop rules and services all read this one view.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError

from llamaduo.errors import PermanentError
from llamaduo.event_parts import Candidate, MarkedSplit
from llamaduo.events import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    AdapterTrained,
    AnyEvent,
    BudgetRefused,
    CancelRequested,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MigrationCancelled,
    MigrationCompleted,
    MigrationRequested,
    MigrationStopped,
    PauseRequested,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    ResumeRequested,
    ServingMeasured,
    ServingRequested,
    WorkFailed,
)
from llamaduo.migrations.spec import MigrationSpec

E = TypeVar("E", bound=Event)
Ended = MigrationCompleted | MigrationStopped | MigrationCancelled


class MigrationView:
    """What is known of one migration. Equal if the same ids were seen with the same content."""

    def __init__(self, migration: str) -> None:
        self.migration = migration
        self.events: dict[str, AnyEvent] = {}
        self._by_type: dict[type[Event], list[AnyEvent]] = {}
        self._last_marked: dict[str, datetime] = {}
        self._spec: MigrationSpec | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MigrationView) and self.migration == other.migration and self.events == other.events

    __hash__ = None  # type: ignore[assignment]

    def add(self, event: AnyEvent) -> bool:
        """Take one event in; False if it is a repeat or another migration's."""
        if event.migration != self.migration or event.id in self.events:
            return False
        self.events[event.id] = event
        self._by_type.setdefault(type(event), []).append(event)
        if isinstance(event, EvalScored):
            self._last_marked[event.evaluator] = max(event.at, self._last_marked.get(event.evaluator, event.at))
        return True

    def of_type(self, model: type[E]) -> list[E]:
        """All events of one type, in the order they were seen."""
        return [event for event in self._by_type.get(model, []) if isinstance(event, model)]

    def _of_round(self, model: type[E], number: int) -> E | None:
        return next((e for e in self.of_type(model) if getattr(e, "round", None) == number), None)

    @property
    def request(self) -> MigrationRequested | None:
        """The submission, once seen."""
        requests = self.of_type(MigrationRequested)
        return requests[0] if requests else None

    @property
    def spec(self) -> MigrationSpec | None:
        """The frozen spec, once seen. PermanentError where this version cannot read it."""
        if self._spec is None and self.request is not None:
            try:
                self._spec = MigrationSpec.model_validate(self.request.spec)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(str(part) for part in first["loc"])
                raise PermanentError(
                    f"the spec of {self.migration} cannot be read by this version: {where}: {first['msg']}"
                ) from error
        return self._spec

    def dataset(self, number: int) -> DatasetReady | None:
        """The data of a round."""
        return self._of_round(DatasetReady, number)

    def adapter(self, number: int, base: int = 0) -> AdapterTrained | None:
        """The adapter of a round, of one of the spec's base models."""
        return next((e for e in self.of_type(AdapterTrained) if (e.round, e.base) == (number, base)), None)

    def decision(self, number: int) -> EvalFailed | EvalPassed | None:
        """The verdict on a round."""
        return self._of_round(EvalPassed, number) or self._of_round(EvalFailed, number)

    def decided_base(self, number: int) -> int:
        """The base model that a round stands for: what its verdict is about, the first one before that."""
        decided = self.decision(number)
        return decided.base if decided is not None else 0

    def shown_base(self, number: int) -> int:
        """The same, but before the verdict the base model that is being looked at: the smaller ones have failed."""
        if self.decision(number) is not None:
            return self.decided_base(number)
        candidates = (e.candidate for e in self.of_type(ResponsesRequested))
        return max((c.base for c in candidates if c.kind == "adapter" and c.round == number), default=0)

    def shown(self, number: int) -> str:
        """Key of the candidate whose answers and marks stand for a round, see `shown_base`."""
        return Candidate(kind="adapter", round=number, base=self.shown_base(number)).key

    def measured(self, number: int, base: int = 0) -> ServingMeasured | None:
        """How fast the adapter of a round, of one of the spec's base models, answers where it is served."""
        every = self.of_type(ServingMeasured)
        return next((e for e in every if (e.round, e.candidate.base) == (number, base)), None)

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds that have begun, ascending."""
        return sorted({d.round for d in self.of_type(DatasetReady)})

    @property
    def passed(self) -> EvalPassed | None:
        """The round that passed, if one did."""
        passes = self.of_type(EvalPassed)
        return min(passes, key=lambda e: e.round) if passes else None

    def asked(self, candidate: str, split: MarkedSplit) -> dict[int, ResponsesRequested | ReferencesRequested]:
        """Shards asked for, by number; `candidate` is a Candidate's key."""
        every: list[ResponsesRequested | ReferencesRequested] = [
            *self.of_type(ResponsesRequested),
            *self.of_type(ReferencesRequested),
        ]
        return {e.shard: e for e in every if e.candidate.key == candidate and e.split == split}

    def generated(self, candidate: str, split: MarkedSplit) -> dict[int, ResponsesGenerated]:
        """Shards answered, by number."""
        every = self.of_type(ResponsesGenerated)
        return {e.shard: e for e in every if e.candidate.key == candidate and e.split == split}

    def scored(self, candidate: str, split: MarkedSplit, evaluator: str) -> dict[int, list[EvalScored]]:
        """One evaluator's marks by shard; more than one where repeats were asked."""
        shards: dict[int, list[EvalScored]] = {}
        for e in self.of_type(EvalScored):
            if e.candidate.key == candidate and e.split == split and e.evaluator == evaluator:
                shards.setdefault(e.shard, []).append(e)
        return shards

    def last_marked(self, evaluator: str) -> datetime | None:
        """When an evaluator last marked anything."""
        return self._last_marked.get(evaluator)

    @property
    def evaluators_seen(self) -> list[str]:
        """Names of all evaluators that marked anything."""
        return sorted({e.evaluator for e in self.of_type(EvalScored)})

    @property
    def ended(self) -> Ended | None:
        """The end of the migration, if it has come; the first one published counts."""
        ends: list[Ended] = [
            *self.of_type(MigrationCompleted),
            *self.of_type(MigrationStopped),
            *self.of_type(MigrationCancelled),
        ]
        return ends[0] if ends else None

    @property
    def cancel(self) -> CancelRequested | None:
        """An operator's wish to cancel."""
        cancels = self.of_type(CancelRequested)
        return cancels[0] if cancels else None

    @property
    def paused(self) -> bool:
        """Whether the last of pause and resume, by time, was a pause."""
        commands = [*self.of_type(PauseRequested), *self.of_type(ResumeRequested)]
        return bool(commands) and isinstance(max(commands, key=lambda e: (e.at, e.id)), PauseRequested)

    @property
    def refusals(self) -> list[BudgetRefused]:
        """Budgets that refused a call."""
        return self.of_type(BudgetRefused)

    @property
    def failures(self) -> list[WorkFailed]:
        """Work that went to the dead letters."""
        return self.of_type(WorkFailed)

    @property
    def alias(self) -> AdapterPromoted | AdapterRolledBack | None:
        """What last changed the alias, by time."""
        changes: list[AdapterPromoted | AdapterRolledBack] = [
            *self.of_type(AdapterPromoted),
            *self.of_type(AdapterRolledBack),
        ]
        return max(changes, key=lambda e: (e.at, e.id)) if changes else None

    @property
    def loaded(self) -> list[AdapterLoaded]:
        """Which replica serves what."""
        return self.of_type(AdapterLoaded)

    def undecided(self, candidate: Candidate, split: MarkedSplit) -> bool:
        """Whether answers and marks for this candidate can still matter."""
        if self.ended or self.cancel:
            return False
        if candidate.kind != "adapter" or split == "holdout" or candidate.round is None:
            return True
        return self.decision(candidate.round) is None

    @property
    def stage(self) -> str:
        """One word for where the migration is."""
        if self.ended:
            return self.ended.type.removeprefix("migration.")
        if self.cancel:
            return "cancelling"
        if self.paused:
            return "paused"
        if self.passed:
            return "confirming" if self.alias or (self.spec and self.spec.promotion == "manual") else "promoting"
        if not self.rounds:
            return "splitting"
        last = self.rounds[-1]
        if isinstance(self.decision(last), EvalFailed):
            return "synthesizing"
        if self.adapter(last, self.shown_base(last)) is None:
            return "training"
        return "measuring" if self._of_round(ServingRequested, last) is not None else "marking"


def fold(events: Iterable[AnyEvent]) -> MigrationView:
    """The state of the migration that the first event belongs to. ValueError without events."""
    view: MigrationView | None = None
    for event in events:
        if view is None:
            view = MigrationView(event.migration)
        view.add(event)
    if view is None:
        raise ValueError("no events to fold")
    return view
