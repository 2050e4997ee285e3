"""Everything the bus is made of, as data: streams, durables, buckets and who publishes what.

`bootstrap` creates and updates it in one step; services only use it and never declare anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from llamaduo.built_in_evaluators import ALWAYS_RUN, METRICS, NOISY
from llamaduo.events import (
    EVENT_TYPES,
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    AdapterTrained,
    BudgetRefused,
    CancelRequested,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MarksRequested,
    MigrationCancelled,
    MigrationCompleted,
    MigrationRequested,
    MigrationStopped,
    PauseRequested,
    PromoteRequested,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    ResumeRequested,
    RollbackRequested,
    ServingMeasured,
    ServingRequested,
    TrafficCaptured,
    TrainingRequested,
    WorkFailed,
    WorkWithdrawn,
    subjects_of,
)

EVENTS = "EVENTS"
DEAD_LETTERS = "DEAD_LETTERS"
ARTIFACTS = "artifacts"
EVALUATOR_PREFIX = "evaluator-"
DEAD_LETTER_PREFIX = "dead."
PROGRESS_PREFIX = "progress."
DAY_S = 24 * 3600
Bucket = Literal["work", "ledger", "budget", "permits"]
BUCKETS: tuple[Bucket, ...] = ("work", "ledger", "budget", "permits")


@dataclass(frozen=True)
class Timing:
    """Seconds that matter to delivery."""

    ack_wait: float
    lease: float
    retry_first: float
    retry_most: float
    fetch: float
    tick: float

    @property
    def heartbeat(self) -> float:
        """How often work in hand is reported, to the broker and in its lease."""
        return min(self.ack_wait, self.lease) / 4


TIMINGS = {
    "default": Timing(ack_wait=30, lease=40, retry_first=2, retry_most=120, fetch=5, tick=2),
    "faults": Timing(ack_wait=1.5, lease=2.5, retry_first=0.2, retry_most=1, fetch=1, tick=0.25),
}


@dataclass(frozen=True)
class Durable:
    """One role's work consumer, shared by all its replicas."""

    name: str
    events: tuple[type[Event], ...]
    attempts: int = 5
    leased: bool = True
    """Whether a job is claimed in the `work` bucket; off where results are a pure function of the log."""

    @property
    def subjects(self) -> list[str]:
        """The subjects it filters on."""
        return [subject for model in self.events for subject in subjects_of(model)]


@dataclass(frozen=True)
class ServiceContract:
    """What a service takes up and what it publishes; the AsyncAPI document is made from this."""

    about: str
    durables: tuple[Durable, ...]
    publishes: tuple[type[Event], ...]
    reads: tuple[type[Event], ...] = field(default=())
    """Broadcast: replayed at start, folded locally, no effects."""
    artifacts: Literal["none", "read", "write"] = "read"
    """What it may do in the bus's object store; who writes reads, too."""
    asks_service_llm: bool = False
    """Whether it shares the buckets of ledger, budget and permits."""


COMMANDS: tuple[type[Event], ...] = (PauseRequested, ResumeRequested, CancelRequested)
ENDS: tuple[type[Event], ...] = (MigrationCompleted, MigrationStopped, MigrationCancelled)
DECISIONS: tuple[type[Event], ...] = (EvalFailed, EvalPassed)
ALL: tuple[type[Event], ...] = tuple(model for model in EVENT_TYPES.values() if model is not TrafficCaptured)
"""All that a migration's state can come of."""
BROADCAST: tuple[type[Event], ...] = (
    MigrationRequested,
    *DECISIONS,
    *COMMANDS,
    *ENDS,
    AdapterPromoted,
    AdapterRolledBack,
)
EVALUATOR_EVENTS: tuple[type[Event], ...] = (ResponsesGenerated, MarksRequested)

SERVICES: dict[str, ServiceContract] = {
    "synthesizer": ServiceContract(
        "Splits the coverage dataset, has the service LLM answer prompts and write new pairs.",
        durables=(
            Durable("synthesizer", (MigrationRequested, EvalFailed)),
            Durable("synthesizer-references", (ReferencesRequested,)),
        ),
        publishes=(DatasetReady, ResponsesGenerated, BudgetRefused, WorkFailed, WorkWithdrawn),
        reads=ALL,
        artifacts="write",
        asks_service_llm=True,
    ),
    "trainer": ServiceContract(
        "Fine-tunes a LoRA adapter on a round's data.",
        durables=(Durable("trainer", (DatasetReady, TrainingRequested), attempts=3),),
        publishes=(AdapterTrained, WorkFailed),
        # Adapters: a round may go on from the one before.
        reads=(*BROADCAST, DatasetReady, TrainingRequested, AdapterTrained),
        artifacts="write",
    ),
    "inference": ServiceContract(
        "Runs vLLM: answers shards of prompts, measures how fast an adapter is served, serves what was promoted.",
        durables=(
            Durable("inference", (ResponsesRequested,)),
            Durable("inference-serving", (ServingRequested,)),
            Durable("inference-promotion", (EvalPassed, PromoteRequested, RollbackRequested)),
        ),
        publishes=(
            ResponsesGenerated,
            ServingMeasured,
            AdapterPromoted,
            AdapterRolledBack,
            AdapterLoaded,
            WorkFailed,
        ),
        reads=(*BROADCAST, AdapterTrained, PromoteRequested, RollbackRequested),
        artifacts="write",
    ),
    "judge": ServiceContract(
        "Runs one evaluator: marks shards of answers.",
        durables=(
            Durable("evaluator-exact-match", EVALUATOR_EVENTS),
            Durable("evaluator-llm-judge", EVALUATOR_EVENTS),
        ),
        publishes=(EvalScored, BudgetRefused, WorkFailed, WorkWithdrawn),
        reads=BROADCAST,
        asks_service_llm=True,  # those evaluators that do
    ),
    "verdict": ServiceContract(
        "Asks for answers in waves, decides rounds, and alone ends a migration.",
        durables=(Durable("verdict", ALL, attempts=10, leased=False),),
        publishes=(
            TrainingRequested,
            ResponsesRequested,
            ReferencesRequested,
            MarksRequested,
            ServingRequested,
            EvalFailed,
            EvalPassed,
            *ENDS,
            WorkFailed,
        ),
        reads=ALL,
        artifacts="none",
    ),
    "gateway": ServiceContract(
        "Answers applications by the service LLM or the local model, and captures traffic.",
        durables=(),
        publishes=(TrafficCaptured,),
        reads=(AdapterPromoted, AdapterRolledBack, AdapterLoaded),
        artifacts="write",
    ),
    "operator": ServiceContract(
        "The CLI, later the dashboard and the drift watch.",
        durables=(),
        publishes=(MigrationRequested, *COMMANDS, PromoteRequested, RollbackRequested),
        reads=(*ALL, TrafficCaptured),
        artifacts="write",
        asks_service_llm=True,
    ),
}


def durable_for_evaluator(name: str) -> Durable:
    """The work consumer of an evaluator, ours or anybody's."""
    return Durable(EVALUATOR_PREFIX + name, EVALUATOR_EVENTS)


def contract_of(service: str) -> ServiceContract:
    """A service's contract; each evaluator (`evaluator-<name>`), ours or anybody's, has the judge's.

    Of the evaluators that come with LlamaDuo it is known whether they ask a service LLM; of others it is not.
    """
    if service in SERVICES:
        return SERVICES[service]
    if service.startswith(EVALUATOR_PREFIX):
        name = service.removeprefix(EVALUATOR_PREFIX)
        return replace(
            SERVICES["judge"],
            durables=(durable_for_evaluator(name),),
            asks_service_llm=name in NOISY or name not in METRICS,
        )
    raise KeyError(service)


def subjects_for(models: Sequence[type[Event]]) -> list[str]:
    """Every subject that events of these classes are published on."""
    return sorted({subject for model in models for subject in subjects_of(model)})


def log_subjects() -> list[str]:
    """Every subject of the log."""
    return subjects_for(tuple(EVENT_TYPES.values()))


def event_stream(max_bytes: int) -> StreamConfig:
    """The log: file storage, kept for ever, refusing rather than forgetting when full."""
    return StreamConfig(
        name=EVENTS,
        subjects=log_subjects(),
        allow_direct=True,
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_bytes=max_bytes,
        duplicate_window=DAY_S,
    )


def dead_letter_stream() -> StreamConfig:
    """What could not be worked on, with body, reason and tries."""
    return StreamConfig(
        name=DEAD_LETTERS,
        subjects=[f"{DEAD_LETTER_PREFIX}>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=90 * DAY_S,
        duplicate_window=DAY_S,
    )


def consumer_config(durable: Durable, timing: Timing, deliver: DeliverPolicy = DeliverPolicy.ALL) -> ConsumerConfig:
    """A durable as JetStream knows it. Tries are counted by us: the server's own limit parks messages silently."""
    return ConsumerConfig(
        durable_name=durable.name,
        deliver_policy=deliver,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=timing.ack_wait,
        max_deliver=-1,
        max_ack_pending=256,
        filter_subjects=durable.subjects,
    )


async def bootstrap(
    js: JetStreamContext, *, profile: str = "default", max_bytes: int | None = None, replicas: int | None = None
) -> None:
    """Create or update every stream, durable and bucket. Safe to run again; ValueError on an unknown profile.

    `max_bytes`: the log's limit, -1 for none; None leaves it as it is. `replicas`: on how many servers of a cluster
    all of it is kept; None: 1 for what is new, else as it is.
    """
    if profile not in TIMINGS:
        raise ValueError(f"unknown profile {profile!r}")
    await make_stores(js, max_bytes=max_bytes, replicas=replicas)
    for contract in SERVICES.values():
        for durable in contract.durables:
            await ensure_durable(js, durable, profile)


async def make_stores(js: JetStreamContext, *, max_bytes: int | None = None, replicas: int | None = None) -> None:
    """Create or update what keeps things: streams, buckets and the artifact store."""
    if max_bytes is None:
        max_bytes = await _limit_of_log(js)
    for stream in (event_stream(max_bytes), dead_letter_stream()):
        await _ensure_stream(js, stream, replicas)
    for bucket in BUCKETS:
        try:
            await js.key_value(bucket)
        except NotFoundError:
            await js.create_key_value(
                KeyValueConfig(bucket=bucket, history=1, storage=StorageType.FILE, replicas=replicas or 1)
            )
        await _set_up(js, f"KV_{bucket}", replicas)
    await make_artifact_store(js, replicas)


async def make_artifact_store(js: JetStreamContext, replicas: int | None = None) -> None:
    """Create the artifact store where it is missing."""
    try:
        await js.object_store(ARTIFACTS)
    except NotFoundError:
        kept = ObjectStoreConfig(storage=StorageType.FILE, replicas=replicas or 1)
        await js.create_object_store(ARTIFACTS, kept)
    await _set_up(js, f"OBJ_{ARTIFACTS}", replicas)


async def _limit_of_log(js: JetStreamContext) -> int:
    try:
        return (await js.stream_info(EVENTS)).config.max_bytes or -1
    except NotFoundError:
        return -1


async def _ensure_stream(js: JetStreamContext, config: StreamConfig, replicas: int | None) -> None:
    config.num_replicas = replicas or 1
    try:
        present = await js.stream_info(str(config.name))
        config.num_replicas = replicas or present.config.num_replicas
    except NotFoundError:
        try:
            await js.add_stream(config)
            return
        except BadRequestError:  # another bootstrap was faster
            pass
    await js.update_stream(config)


async def _set_up(js: JetStreamContext, stream: str, replicas: int | None) -> None:
    """A bucket's stream as it should be.

    What is read is in the subject asked on, for permissions to see; no message can wipe a bucket (roll-up); it is
    kept on so many servers.
    """
    config = (await js.stream_info(stream)).config
    wanted = (True, False, replicas or config.num_replicas)
    if (config.allow_direct, config.allow_rollup_hdrs, config.num_replicas) != wanted:
        config.allow_direct, config.allow_rollup_hdrs, config.num_replicas = wanted
        await js.update_stream(config)


async def ensure_durable(
    js: JetStreamContext,
    durable: Durable,
    profile: str,
    deliver: DeliverPolicy = DeliverPolicy.ALL,
    *,
    start: int | None = None,
) -> ConsumerInfo:
    """Create a durable, or bring its settings up to date; where it starts is never changed afterwards.

    `start`: the sequence number to begin at, with the deliver policy that says so.
    """
    config = consumer_config(durable, TIMINGS[profile], deliver)
    config.opt_start_seq = start
    try:
        present = await js.consumer_info(EVENTS, durable.name)
    except NotFoundError:
        return await js.add_consumer(EVENTS, config)
    config.deliver_policy = present.config.deliver_policy
    config.opt_start_seq = present.config.opt_start_seq
    return await js.add_consumer(EVENTS, config)


async def add_evaluator(js: JetStreamContext, name: str, *, profile: str, backfill: bool = False) -> ConsumerInfo:
    """A durable for a new evaluator, from now on; with `backfill` from the start of the log."""
    deliver = DeliverPolicy.ALL if backfill else DeliverPolicy.NEW
    return await ensure_durable(js, durable_for_evaluator(name), profile, deliver)


async def remove_evaluator(js: JetStreamContext, name: str) -> bool:
    """Delete an evaluator's durable; False if there was none."""
    try:
        return await js.delete_consumer(EVENTS, durable_for_evaluator(name).name)
    except NotFoundError:
        return False


async def list_evaluators(js: JetStreamContext) -> list[ConsumerInfo]:
    """All evaluators' durables with their lag."""
    infos = await js.consumers_info(EVENTS)
    return sorted((i for i in infos if i.name.startswith("evaluator-")), key=lambda i: i.name)


async def has_durable(js: JetStreamContext, name: str) -> bool:
    """Whether the log has this durable."""
    try:
        await js.consumer_info(EVENTS, name)
    except NotFoundError:
        return False
    return True


def how_to_make(durable: str) -> str:
    """The command that makes a durable that is missing."""
    name = durable.removeprefix("evaluator-")
    return f"llamaduo evaluator add {name}" if name != durable and name not in ALWAYS_RUN else "llamaduo bootstrap"
