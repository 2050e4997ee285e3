"""The events: one frozen model each; the subject on the bus is the event's `type`, or begins with it.

Every event carries its migration, schema version, when and by whom it was published. Its `id` is a hash of what
was asked: type (or the question it answers), migration, job key, submission. Outcome, cost and time are never in
it, so a repeated answer to the same question is the same event. Readers ignore fields they do not know.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, computed_field

from llamaduo.errors import BadEvent
from llamaduo.event_parts import (
    Adapter,
    ArtifactRef,
    BaseVerdict,
    CallCounts,
    Candidate,
    FailingRow,
    LabelCount,
    MarkedSplit,
    Marks,
    MetricRange,
    PreferenceTraining,
    RowMark,
    Sha256,
    Split,
    Time,
    WeakRow,
    WorkSpan,
)
from llamaduo.identity import identity

MIGRATION_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
"""Of a migration's id, which is part of file names, keys of buckets and message headers."""


class Event(BaseModel):
    """What all events share."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    answers: ClassVar[str | None] = None
    """The question whose possible answers share one id (passed or failed; completed, stopped or cancelled)."""

    type: str
    schema_version: int = 1
    migration: str = Field(pattern=MIGRATION_PATTERN)
    submission: int = Field(1, ge=1, description="raised only when somebody asks for the same thing again")
    at: Time = Field(default_factory=lambda: datetime.now(UTC), description="when it was published")
    source: str = Field("", description="the service and replica that published it")

    def job_key(self) -> tuple[str | int, ...]:
        """What was asked, beyond type and migration."""
        return ()

    def speaker(self) -> str | None:
        """Who alone may say this, where several may publish events of this class: a token of its subject."""
        return None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        """The event's id, sent as `Nats-Msg-Id` and `ce-id`."""
        return identity(self.answers or self.type, self.migration, *self.job_key(), self.submission)


class MigrationRequested(Event):
    """A migration was submitted: the frozen spec and the coverage dataset."""

    type: Literal["migration.requested"] = "migration.requested"
    spec: dict[str, Any]
    coverage: ArtifactRef
    parent: str | None = None


class OfRound(Event):
    """An event about one round as a whole."""

    round: int = Field(ge=0)

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round,)


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


class OfShard(Event):
    """An event about one shard of one split for one candidate."""

    candidate: Candidate
    split: MarkedSplit
    shard: int = Field(ge=0)
    of: int = Field(ge=1, description="shards of this split in all")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.candidate.key, self.split, self.shard, self.of)

    def place(self) -> dict[str, Any]:
        """The fields that say which shard of what: what answers or marks it has the same."""
        return {
            name: getattr(self, name) for name in ("migration", "submission", "candidate", "split", "shard", "of")
        }


class ShardAsked(OfShard):
    """A shard of prompts somebody is to answer: rows `shard*size` to `shard*size+size` of the split artifact."""

    rows: ArtifactRef = Field(description="the whole split, in its frozen order")
    size: int = Field(ge=1, description="rows a shard")
    answers_per_prompt: int = Field(1, ge=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    evaluators: list[str] = Field(default_factory=list, description="who marks the answers")


class ResponsesRequested(ShardAsked):
    """One shard of prompts for the local candidate."""

    type: Literal["responses.requested"] = "responses.requested"


class ReferencesRequested(ShardAsked):
    """One shard of prompts for the service LLM itself, the bar to reach, or for the nearest train row's answer."""

    type: Literal["references.requested"] = "references.requested"


class ResponsesGenerated(OfShard):
    """The answers to a shard; `responses` is None when the round was decided before they were made."""

    type: Literal["responses.generated"] = "responses.generated"
    responses: ArtifactRef | None
    skipped: bool = False
    evaluators: list[str] = Field(default_factory=list)
    rows: int = 0
    too_long: int = Field(0, description="prompts that did not fit the model's window and have no answer")
    cut: int = Field(0, description="answers that ended at max_tokens")
    input_tokens: int = 0
    output_tokens: int = 0
    calls: CallCounts = CallCounts()
    work: list[WorkSpan] = Field(default_factory=list)


class MarksRequested(OfShard):
    """Mark that shard once more: repeat n, by the evaluator named."""

    type: Literal["marks.requested"] = "marks.requested"
    evaluator: str
    repeat: int = Field(ge=1)
    responses: ArtifactRef

    def job_key(self) -> tuple[str | int, ...]:
        return (*super().job_key(), self.evaluator, self.repeat)


class EvalScored(OfShard):
    """One evaluator's marks and reasons for one shard."""

    type: Literal["eval.scored"] = "eval.scored"
    evaluator: str
    version: str
    repeat: int = 0
    noisy: bool = Field(
        False, description="whether this evaluator may mark the same answer differently when asked again"
    )
    metrics: dict[str, MetricRange] = Field(default_factory=dict)
    marks: list[RowMark] = Field(default_factory=list)
    slices: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="column of `meta` that the gate has a floor for -> row -> its value"
    )
    labels: list[LabelCount] = Field(
        default_factory=list, description="where labels were compared, most frequent first; for the report alone"
    )
    skipped: bool = False
    calls: CallCounts = CallCounts()
    work: list[WorkSpan] = Field(default_factory=list)

    def job_key(self) -> tuple[str | int, ...]:
        return (*super().job_key(), self.evaluator, self.version, self.repeat)

    def speaker(self) -> str | None:
        return self.evaluator


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


class ServingRequested(OfRound):
    """Measure how fast this round's adapter answers where it is served: it passed all else of its gate."""

    type: Literal["serving.requested"] = "serving.requested"
    candidate: Candidate
    rows: ArtifactRef = Field(description="the whole test split, in its frozen order")
    requests: int = Field(ge=1, description="to measure; with fewer rows than that each is asked more than once")
    concurrency: int = Field(ge=1, description="requests in flight")
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.candidate.base) if self.candidate.base else (self.round,)


class ServingMeasured(OfRound):
    """How fast the engine that serves this round's adapter answered a burst of test prompts."""

    type: Literal["serving.measured"] = "serving.measured"
    candidate: Candidate
    name: str = Field(description="the name under which the adapter is served")
    replica: str = ""
    url: str = Field("", description="the engine's OpenAI endpoint")
    concurrency: int = Field(ge=1, description="requests in flight")
    asked: int = Field(0, description="requests that were to be measured")
    seconds: list[float] = Field(
        default_factory=list,
        description="of each request answered, from its being given to the engine to its last token",
    )
    wall_s: float = Field(0.0, ge=0, description="seconds the whole burst took")
    too_long: int = Field(0, description="prompts that did not fit the model's window; not measured")
    input_tokens: int = 0
    output_tokens: int = 0
    work: list[WorkSpan] = Field(default_factory=list)

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.candidate.base) if self.candidate.base else (self.round,)


class AdapterPromoted(OfRound):
    """The alias now means this adapter."""

    type: Literal["adapter.promoted"] = "adapter.promoted"
    alias: str
    adapter: Adapter
    name: str = Field(description="the name under which vLLM serves it")
    by: str
    why: str
    command: str = ""
    base: int = Field(0, ge=0, description="which of the spec's base models it belongs to; 0: the first")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.alias, self.command)


class AdapterRolledBack(OfRound):
    """The alias no longer means the adapter of `round`; `to` is the one it means now, if any."""

    type: Literal["adapter.rolled_back"] = "adapter.rolled_back"
    alias: str
    to: Adapter | None
    by: str
    why: str
    command: str = ""

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.alias, self.command)


class AdapterLoaded(OfRound):
    """One inference replica now serves this adapter."""

    type: Literal["adapter.loaded"] = "adapter.loaded"
    name: str
    digest: Sha256
    replica: str
    url: str = ""

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round, self.digest, self.replica, self.url)


class TrafficCaptured(Event):
    """A finished file of an alias's traffic, as rows of prompts and answers. It belongs to no migration.

    `migration` is `traffic-ALIAS`.
    """

    type: Literal["traffic.captured"] = "traffic.captured"
    alias: str
    traffic: ArtifactRef = Field(description="JSON lines, each with the id of its request")
    rows: int = Field(ge=1)
    first: datetime = Field(description="when the first of the rows was answered")
    last: datetime = Field(description="when the last one was")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.alias, self.traffic.sha256)


class Command(Event):
    """Something an operator asked for; its id is made once by the caller and reused on retry."""

    command: str = Field(min_length=8)
    by: str = ""
    why: str = ""

    def job_key(self) -> tuple[str | int, ...]:
        return (self.command,)


class PauseRequested(Command):
    """Take up no new work of this migration."""

    type: Literal["migration.pause_requested"] = "migration.pause_requested"


class ResumeRequested(Command):
    """Go on with a paused migration."""

    type: Literal["migration.resume_requested"] = "migration.resume_requested"


class CancelRequested(Command):
    """End this migration now."""

    type: Literal["migration.cancel_requested"] = "migration.cancel_requested"


class PromoteRequested(Command):
    """Serve the adapter of a round under the migration's alias."""

    type: Literal["adapter.promote_requested"] = "adapter.promote_requested"
    round: int = Field(ge=0)


class RollbackRequested(Command):
    """Serve what the alias meant before."""

    type: Literal["adapter.rollback_requested"] = "adapter.rollback_requested"
    round: int = Field(ge=0)


class BudgetRefused(Event):
    """A budget's door refused a call."""

    type: Literal["budget.exhausted"] = "budget.exhausted"
    what: Literal["money", "calls", "tokens"]
    limit: float
    spent: float
    job: str = Field(description="id of the event whose work was refused")
    calls: CallCounts = Field(CallCounts(), description="what that work had bought before")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.what, self.job)


class WorkFailed(Event):
    """A message went to the dead letters."""

    type: Literal["work.failed"] = "work.failed"
    consumer: str
    subject: str
    job: str = Field(description="id of the event that could not be worked on")
    error: str
    attempts: int
    dead_letter: str = Field("", description="id of the dead letter, for `llamaduo dlq`")
    calls: CallCounts = Field(CallCounts(), description="what that work had bought")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.consumer, self.job, self.dead_letter)

    def speaker(self) -> str | None:
        return self.consumer


class WorkWithdrawn(Event):
    """Work in hand was stopped, for its migration was cancelled or had ended; only where it had bought something."""

    type: Literal["work.withdrawn"] = "work.withdrawn"
    consumer: str
    job: str = Field(description="id of the event whose work was stopped")
    calls: CallCounts = Field(description="what that work had bought")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.consumer, self.job)

    def speaker(self) -> str | None:
        return self.consumer


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
