"""The events: one frozen model each; the subject on the bus is the event's `type`, or begins with it.

Every event carries its migration, schema version, when and by whom it was published. Its `id` is a hash of what
was asked: type (or the question it answers), migration, job key, submission. Outcome, cost and time are never in
it, so a repeated answer to the same question is the same event. Readers ignore fields they do not know.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from llamaduo.errors import BadEvent
from llamaduo.events.base import MIGRATION_PATTERN, Event, OfRound, OfShard, ShardAsked
from llamaduo.events.operating import (
    BudgetRefused,
    CancelRequested,
    Command,
    PauseRequested,
    PromoteRequested,
    ResumeRequested,
    RollbackRequested,
    WorkFailed,
    WorkWithdrawn,
)
from llamaduo.events.rounds import (
    AdapterTrained,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    MigrationCancelled,
    MigrationCompleted,
    MigrationEnded,
    MigrationRequested,
    MigrationStopped,
    RoundDecided,
    TrainingRequested,
)
from llamaduo.events.serving import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    ServingMeasured,
    ServingRequested,
    TrafficCaptured,
)
from llamaduo.events.shards import (
    EvalScored,
    MarksRequested,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
)

__all__ = [
    "EVENT_TYPES",
    "LONGEST_SHOWN",
    "MIGRATION_PATTERN",
    "AdapterLoaded",
    "AdapterPromoted",
    "AdapterRolledBack",
    "AdapterTrained",
    "AnyEvent",
    "BudgetRefused",
    "CancelRequested",
    "Command",
    "DatasetReady",
    "EvalFailed",
    "EvalPassed",
    "EvalScored",
    "Event",
    "MarksRequested",
    "MigrationCancelled",
    "MigrationCompleted",
    "MigrationEnded",
    "MigrationRequested",
    "MigrationStopped",
    "OfRound",
    "OfShard",
    "PauseRequested",
    "PromoteRequested",
    "ReferencesRequested",
    "ResponsesGenerated",
    "ResponsesRequested",
    "ResumeRequested",
    "RollbackRequested",
    "RoundDecided",
    "ServingMeasured",
    "ServingRequested",
    "ShardAsked",
    "TrafficCaptured",
    "TrainingRequested",
    "WorkFailed",
    "WorkWithdrawn",
    "encode_event",
    "event_of",
    "parse_event",
    "subject_for",
    "subject_of",
    "subjects_of",
]

AnyEvent = (
    MigrationRequested
    | DatasetReady
    | TrainingRequested
    | AdapterTrained
    | ResponsesRequested
    | ReferencesRequested
    | ResponsesGenerated
    | MarksRequested
    | EvalScored
    | EvalFailed
    | EvalPassed
    | ServingRequested
    | ServingMeasured
    | AdapterPromoted
    | AdapterRolledBack
    | AdapterLoaded
    | TrafficCaptured
    | PauseRequested
    | ResumeRequested
    | CancelRequested
    | PromoteRequested
    | RollbackRequested
    | BudgetRefused
    | WorkFailed
    | WorkWithdrawn
    | MigrationCompleted
    | MigrationStopped
    | MigrationCancelled
)

EVENT_TYPES: dict[str, type[Event]] = {model.model_fields["type"].default: model for model in AnyEvent.__args__}
LONGEST_SHOWN = 200
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_PARSER: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])


def subject_of(model: type[Event]) -> str:
    """The subject on the bus of an event class."""
    subject: str = model.model_fields["type"].default
    return subject


def subject_for(event: Event) -> str:
    """The subject that one event is published on: its type, and where only one may say it, who that is.

    So the bus can keep others from saying it. Where the name is no token of a subject, the type alone.
    """
    speaker = event.speaker()
    kind = subject_of(type(event))
    return f"{kind}.{speaker}" if speaker is not None and _TOKEN.fullmatch(speaker) else kind


def subjects_of(model: type[Event]) -> list[str]:
    """All subjects that events of a class are published on. The bare type is what older releases used."""
    kind = subject_of(model)
    return [kind, f"{kind}.*"] if model.speaker is not Event.speaker else [kind]


def event_of(subject: str, body: bytes) -> AnyEvent:
    """Read one event that was published on this subject. BadEvent where it may not be said there."""
    event = parse_event(body)
    if subject not in (event.type, subject_for(event)):
        raise BadEvent(f"{event.type} does not belong on the subject {subject}")
    return event


def _shown(text: str) -> str:
    """Words of a stranger, as may stand in a log and on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST_SHOWN])


def parse_event(body: bytes) -> AnyEvent:
    """Read one event from its JSON body. BadEvent if it is none of this contract."""
    try:
        event = _PARSER.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadEvent(f"not an event of this contract: {_shown(where)}: {_shown(first['msg'])}") from error
    try:
        _ = event.id
    except ValueError as error:
        raise BadEvent(f"an event without an id: {_shown(str(error))}") from error
    return event


def encode_event(event: Event) -> bytes:
    """The JSON body of an event."""
    return event.model_dump_json().encode()
