"""Whose turn it is among several base models: the smallest that can still pass the round is marked and decides it.

A larger one's marks are not bought while a smaller one may still pass. Where all have failed, the best of them stands
for the round: its failures say what the next round's data is to be about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamaduo.event_parts import BaseVerdict, Candidate, Marks
from llamaduo.events import (
    DatasetReady,
    Event,
    MarksRequested,
    ResponsesRequested,
    ServingRequested,
    TrainingRequested,
    WorkFailed,
)
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.next_step import mean_of
from llamaduo.migrations.serving_gate import judge_serving
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.judging import Outcome, judge_round
from services.verdict.marks import shards_marked


@dataclass(frozen=True)
class Standing:
    """What one base model's marks of a round say. Without an outcome it is being trained, or `lost` says why not."""

    base: int
    outcome: Outcome | None = None
    lost: str = ""

    @property
    def marks(self) -> Marks:
        """Its marks so far."""
        return self.outcome.marks if self.outcome is not None else {}

    @property
    def word(self) -> Literal["passed", "failed", "undecided", "lost", "waiting"]:
        """In one word."""
        if self.lost:
            return "lost"
        return self.outcome.verdict if self.outcome is not None else "waiting"


@dataclass(frozen=True)
class Turn:
    """The candidate that is to be marked further, or that a round's verdict is about; and how the others stand."""

    candidate: Candidate
    outcome: Outcome
    standings: Sequence[Standing]

    def told(self) -> list[BaseVerdict]:
        """How each base model stands, for the verdict's event."""
        return [
            BaseVerdict(
                base=one.base,
                verdict=one.word,
                marks=one.marks,
                rows=one.outcome.rows if one.outcome is not None else 0,
                note=one.outcome.note if one.outcome is not None else one.lost,
            )
            for one in self.standings
            if one.word != "waiting"
        ]

    def note(self, bases: Sequence[str]) -> str:
        """Which base model the verdict is about, and what became of the others."""
        others = [f"{bases[one.base]} {one.word}" for one in self.standings if one.base != self.candidate.base]
        which = "passed" if self.outcome.verdict == "passed" else "is the best of those that did not"
        parts = [f"{bases[self.candidate.base]} {which}", *others, self.outcome.note]
        return "; ".join(part for part in parts if part)


def turn_of(view: MigrationView, spec: MigrationSpec, number: int, of: int) -> Turn | None:
    """Whose turn it is in round `number` (`of` shards); None while that one is trained, and where all are lost."""
    every = standings(view, spec, number, of)
    last = every[-1]
    if last.word in ("waiting", "passed"):
        chosen, outcome = last, last.outcome
    else:
        told = [one for one in every if one.outcome is not None]
        if not told:
            return None
        chosen = max(told, key=lambda one: (mean_of(one.marks, view), -one.base))
        outcome = _judged(view, spec, number, chosen.base, of, spec.marking.failures_wanted)
    trained = view.adapter(number, chosen.base)
    if trained is None or outcome is None:
        return None
    candidate = Candidate(kind="adapter", round=number, adapter=trained.adapter, base=chosen.base)
    return Turn(candidate, outcome, every)


def standings(view: MigrationView, spec: MigrationSpec, number: int, of: int) -> list[Standing]:
    """The base models in their order, up to the first that has not failed: no other can win before it has."""
    lost = lost_bases(view, spec, number)
    # Marks beyond a sure fail only serve the next round's data, which is about the best of those that failed.
    failures_wanted = spec.marking.failures_wanted if len(spec.bases) == 1 else 0
    found: list[Standing] = []
    for base in range(len(spec.bases)):
        if base in lost:
            found.append(Standing(base, lost=lost[base]))
        elif view.adapter(number, base) is None:
            found.append(Standing(base))
        else:
            found.append(Standing(base, _judged(view, spec, number, base, of, failures_wanted)))
        if found[-1].word in ("waiting", "passed"):
            break
    return found


def lost_bases(view: MigrationView, spec: MigrationSpec, number: int) -> dict[int, str]:
    """Base models that cannot pass this round since their training or answering was given up, each with the reason.

    Only where there are several: the only one there is is no loss to go on without.
    """
    if len(spec.bases) == 1:
        return {}
    lost: dict[int, str] = {}
    for failure in view.failures:
        event = view.events.get(failure.job)
        if event is None or (place := trained_or_answered(failure, event)) is None or place[0] != number:
            continue
        if isinstance(event, ResponsesRequested):
            done = event.shard in view.generated(event.candidate.key, event.split)
        elif isinstance(event, ServingRequested):
            done = view.measured(*place) is not None
        else:
            done = view.adapter(*place) is not None
        if not done:
            lost.setdefault(place[1], f"{failure.consumer} gave up on it: {failure.error}")
    return lost


def trained_or_answered(failure: WorkFailed, event: Event) -> tuple[int, int] | None:
    """(round, base model) whose training or whose answers to the test split were given up; None for other work."""
    match event:
        case DatasetReady() if failure.consumer == "trainer":
            return event.round, 0
        case TrainingRequested() if failure.consumer == "trainer":
            return event.round, event.base
        case ResponsesRequested(candidate=Candidate(kind="adapter", round=int(number), base=base), split="test"):
            return (number, base) if failure.consumer == "inference" else None
        case ServingRequested() if failure.consumer == "inference-serving":
            return event.round, event.candidate.base
    return None


def repeats_given_up(view: MigrationView, candidate: str) -> set[tuple[int, int]]:
    """(shard, repeat) of marks asked for once more that went to the dead letters."""
    events = [view.events.get(failure.job) for failure in view.failures]
    asked = [event for event in events if isinstance(event, MarksRequested) and event.candidate.key == candidate]
    return {(event.shard, event.repeat) for event in asked}


def _judged(
    view: MigrationView, spec: MigrationSpec, number: int, base: int, of: int, failures_wanted: int
) -> Outcome:
    key = Candidate(kind="adapter", round=number, base=base).key
    local = shards_marked(view, key, "test", spec.awaited)
    service = shards_marked(view, "service", "test", spec.required) if spec.gate.parity else {}
    outcome = judge_round(spec, number, of, local, service, failures_wanted, repeats_given_up(view, key))
    measured = view.measured(number, base)
    if outcome.verdict != "passed" or measured is None:
        return outcome
    speed = judge_serving(spec.gate, measured)
    note = "; ".join(part for part in (outcome.note, speed.told) if part)
    return replace(outcome, verdict=speed.verdict, note=note)
