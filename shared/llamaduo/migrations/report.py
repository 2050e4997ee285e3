"""The report of a migration: what was asked, what came out, what it took; a function of the folded log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field

from llamaduo import __version__
from llamaduo.event_parts import CallCounts, Candidate, MarkedSplit, Marks, PreferenceTraining
from llamaduo.events import (
    AdapterPromoted,
    AdapterTrained,
    BudgetRefused,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    MigrationCompleted,
    MigrationStopped,
    ReferencesRequested,
    ResponsesGenerated,
    WorkFailed,
    WorkWithdrawn,
)
from llamaduo.migrations.confusion import ConfusionPart, confusions_of
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.intervals import fixed_marks
from llamaduo.migrations.report_bases import BaseInRound, bases_of
from llamaduo.migrations.report_serving import ServingPart, serving_of
from llamaduo.migrations.report_trust import TrustPart, trust_of
from llamaduo.migrations.report_warnings import warnings_of
from llamaduo.migrations.seconds import Seconds, seconds_within, spans_of
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.migrations.stop_advice import next_thing_to_do

Status = Literal["running", "completed", "stopped", "cancelled"]


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True)


class BaseModelPart(Part):
    """The untrained base model on the test split. Of several the one that won, the first one before that."""

    model: str | None = None
    digest: str | None = Field(None, description="of its weights, tokenizer and chat template")
    marks: Marks = Field(default_factory=dict)


class ServiceLLMPart(Part):
    """The service LLM on the test split: the bar to reach. Says which one it really was."""

    model: str | None = None
    base_url: str | None = Field(None, description="None: the provider's own address")
    teacher: str | None = Field(None, description="model that wrote new rows, with its address if it has one")
    judge: str | None = Field(None, description="model that judged, with its address if it has one")
    marks: Marks = Field(
        default_factory=dict,
        description="against the coverage answers: where those are its own, its agreement with its logged answers",
    )


class RoundPart(Part):
    """One pass of the loop."""

    number: int
    base_model: str | None = Field(
        None, description="of several the one that these figures are about: it passed, else it was the best one"
    )
    bases: list[BaseInRound] = Field(
        default_factory=list, description="where there are several: each, smallest first"
    )
    verdict: Literal["passed", "failed", "undecided"] | None = Field(None, description="None: not decided yet")
    note: str = Field("", description="the verdict's own words")
    rows: int = Field(0, description="training rows")
    rows_by_split: dict[str, int] = Field(default_factory=dict)
    added: int = Field(0, description="generated rows that are new in this round")
    removed: dict[str, int] = Field(default_factory=dict, description="generated rows dropped, by filter")
    dataset_digest: str | None = None
    adapter_digest: str | None = None
    steps: int | None = None
    best_step: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    continued_from: str | None = Field(
        None, description="digest of the adapter that training went on from; None: a new one on the base model"
    )
    preference: PreferenceTraining | None = Field(None, description="DPO on own failures, where the recipe asks")
    rows_kept: int | None = None
    rows_cut: int | None = None
    label_tokens: int | None = None
    seed: int | None = None
    marks: Marks = Field(
        default_factory=dict,
        description="test split; the verdict's own intervals where it gave any, else Wilson's",
    )
    marked: int = Field(0, description="test prompts marked when it was decided")
    sure_after: int = Field(0, description="test prompts after which it was certain; 0: it never was")
    failing: int = Field(0, description="failing rows that were handed on to the synthesizer")
    seconds: Seconds = Seconds()


class EvaluatorPart(Part):
    """Who marked."""

    name: str
    versions: list[str]
    role: Literal["required", "advisory", "veto", "not asked"]
    metrics: dict[str, tuple[float, float]] = Field(default_factory=dict, description="lowest and highest mark")
    abstained: int = Field(0, description="marks it withheld, over all candidates")


class ServedPart(Part):
    """The adapter that the alias means."""

    alias: str
    name: str
    digest: str
    round: int
    by: str
    why: str
    urls: list[str] = Field(default_factory=list, description="replicas that have loaded it")


class CallsPart(Part):
    """Service-LLM calls of the whole migration."""

    made: int = 0
    batched: int = Field(0, description="of those made: in batches, at their lower price")
    from_ledger: int = 0
    rebought: int = 0
    failed: int = Field(0, description="tries that brought no answer")
    limited: int = Field(0, description="of these: 429s")
    refused: int = Field(0, description="calls that the provider will not answer")
    cut: int = Field(0, description="answers cut off at their token limit")
    empty: int = Field(0, description="answers without text")
    odd: int = Field(0, description="typed answers not as asked, but read")
    unreadable: int = Field(0, description="typed answers of which nothing could be used")
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = Field(0.0, description="US dollars; 0 where no price is known")
    machine_money: float = Field(0.0, description="US dollars: wall time at the spec's price of a machine hour")


class Report(Part):
    """All that a migration has to show. Marks are on each metric's own scale, times in seconds."""

    report_version: Literal[1] = 1
    llamaduo: str = Field(__version__, description="version that made this report")
    made_at: datetime
    migration: str
    name: str | None = None
    status: Status
    stage: str
    stopped_rule: str | None = None
    ended_because: str = ""
    what_to_do: str = Field(
        "", description="the next thing to do where it does not go on: stopped, paused, cancelled"
    )
    requested_at: datetime | None = None
    ended_at: datetime | None = None
    base_model: BaseModelPart = BaseModelPart()
    service_llm: ServiceLLMPart = ServiceLLMPart()
    nearest_row: Marks = Field(
        default_factory=dict,
        description="what no training gives: the most alike train row's answer copied; marked by free evaluators",
    )
    gate: dict[str, Any] = Field(default_factory=dict)
    rounds: list[RoundPart] = Field(default_factory=list)
    passed_round: int | None = None
    holdout: Marks = Field(default_factory=dict, description="the passed round on rows never looked at before")
    trust: TrustPart = Field(TrustPart(), description="how far the marks can be trusted")
    serving: ServingPart | None = Field(None, description="how fast it is served, where the gate asks; one box")
    confusion: list[ConfusionPart] = Field(
        default_factory=list, description="labels given for labels, by each evaluator that compares labels"
    )
    served: ServedPart | None = None
    evaluators: list[EvaluatorPart] = Field(default_factory=list)
    seconds: Seconds = Seconds()
    closing_seconds: Seconds = Field(Seconds(), description="after the last decision: holdout, promotion")
    calls: CallsPart = CallsPart()
    coverage_digest: str | None = Field(None, description="SHA-256 of the submitted rows")
    versions: dict[str, str] = Field(default_factory=dict, description="libraries that trained the adapters")
    warnings: list[str] = Field(default_factory=list)


def report_schema() -> dict[str, Any]:
    """JSON Schema of the report."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_credentials(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _named(llm: ServiceLLM) -> str:
    url = _without_credentials(llm.base_url)
    return f"{llm.model} at {url}" if url else llm.model


def marks_so_far(view: MigrationView, candidate: str, split: MarkedSplit) -> Marks:
    """Wilson intervals over all marks a candidate has got, of every evaluator that marked it."""
    confidence = view.spec.gate.confidence if view.spec else 0.95
    by_evaluator = {
        name: [event for shard in view.scored(candidate, split, name).values() for event in shard]
        for name in view.evaluators_seen
    }
    return fixed_marks(by_evaluator, confidence)


def _round_marks(view: MigrationView, number: int, decided: EvalFailed | EvalPassed | None) -> Marks:
    marks = marks_so_far(view, view.shown(number), "test")
    if decided is not None:
        for evaluator, metrics in decided.marks.items():
            marks[evaluator] = {**marks.get(evaluator, {}), **metrics}
    return marks


def _round(view: MigrationView, number: int, seconds: Seconds) -> RoundPart:
    data, decided = view.dataset(number), view.decision(number)
    trained = view.adapter(number, view.shown_base(number))
    parts: dict[str, Any] = {
        "number": number,
        "seconds": seconds,
        "marks": _round_marks(view, number, decided),
        **bases_of(view, number),
    }
    if data is not None:
        parts |= {
            "rows": data.rows.get("train", 0),
            "rows_by_split": dict(data.rows),
            "added": data.added,
            "removed": data.removed,
            "dataset_digest": data.digest,
        }
    if trained is not None:
        parts |= {"adapter_digest": trained.adapter.digest}
        same = (
            "steps",
            "best_step",
            "loss",
            "validation_loss",
            "continued_from",
            "preference",
            "rows_kept",
            "rows_cut",
            "label_tokens",
            "seed",
        )
        parts |= {field: getattr(trained, field) for field in same}
    if decided is not None:
        parts |= {"verdict": decided.verdict, "note": decided.note, "marked": decided.rows}
        parts |= {"sure_after": decided.sure_after}
        parts |= {"failing": len(decided.failures) if isinstance(decided, EvalFailed) else 0}
    return RoundPart(**parts)


def _windows(view: MigrationView, until: datetime) -> tuple[dict[int, tuple[datetime, datetime]], datetime | None]:
    """Each round's window, and when the closing window begins (None before the first event with a time).

    A round lasts from the decision before it (round 0: from the request) to its own decision, or until now.
    """
    numbers = sorted({*view.rounds, *(e.round for e in view.of_type(EvalFailed) + view.of_type(EvalPassed))})
    begin = view.request.at if view.request else min((e.at for e in view.events.values()), default=None)
    windows: dict[int, tuple[datetime, datetime]] = {}
    for number in numbers:
        if begin is None:
            break
        decided = view.decision(number)
        end = max(begin, decided.at if decided else until)
        windows[number] = (begin, end)
        begin = end
    return windows, begin


def _calls(view: MigrationView, wall: float) -> CallsPart:
    events: list[DatasetReady | ResponsesGenerated | EvalScored | BudgetRefused | WorkFailed | WorkWithdrawn] = [
        *view.of_type(DatasetReady),
        *view.of_type(ResponsesGenerated),
        *view.of_type(EvalScored),
        *view.refusals,
        *view.of_type(WorkWithdrawn),
        # A dead letter that was put back and then done: its result counts what was bought before, too.
        *(failure for failure in view.failures if not _done_after_all(view, failure)),
    ]
    total = sum((event.calls for event in events), CallCounts())
    price = view.spec.costs.machine_hour if view.spec else 0.0
    return CallsPart(**total.model_dump(), machine_money=round(price * wall / 3600, 4))


def _done_after_all(view: MigrationView, failure: WorkFailed) -> bool:
    """Whether the work that was given up has a result, or was put back and withdrawn: that tells of its calls."""
    if any((one.consumer, one.job) == (failure.consumer, failure.job) for one in view.of_type(WorkWithdrawn)):
        return True
    asked = view.events.get(failure.job)
    if isinstance(asked, ResponsesGenerated):
        marked = view.scored(asked.candidate.key, asked.split, failure.consumer.removeprefix("evaluator-"))
        return asked.shard in marked
    if isinstance(asked, ReferencesRequested):
        return asked.shard in view.generated(asked.candidate.key, asked.split)
    return isinstance(asked, EvalFailed) and view.dataset(asked.round + 1) is not None


def _evaluators(view: MigrationView) -> list[EvaluatorPart]:
    roles = {choice.name: choice.role for choice in view.spec.evaluators} if view.spec else {}
    scored = view.of_type(EvalScored)
    parts = []
    for name in sorted({*roles, *view.evaluators_seen}):
        mine = [event for event in scored if event.evaluator == name]
        ranges = {metric: (r.low, r.high) for event in mine for metric, r in event.metrics.items()}
        parts.append(
            EvaluatorPart(
                name=name,
                versions=sorted({event.version for event in mine}),
                role=roles.get(name, "not asked"),
                metrics=dict(sorted(ranges.items())),
                abstained=sum(mark.value is None for event in mine for mark in event.marks),
            )
        )
    return parts


def _served(view: MigrationView) -> ServedPart | None:
    change = view.alias
    if not isinstance(change, AdapterPromoted):
        return None
    # A replica whose engine was changed says so again, at another address.
    mine = [loaded for loaded in view.loaded if loaded.digest == change.adapter.digest]
    urls = {loaded.replica: loaded.url for loaded in sorted(mine, key=lambda loaded: loaded.at)}
    return ServedPart(
        alias=change.alias,
        name=change.name,
        digest=change.adapter.digest,
        round=change.round,
        by=change.by,
        why=change.why,
        urls=sorted({url for url in urls.values() if url}),
    )


def _status(view: MigrationView) -> Status:
    ended = view.ended
    if ended is None:
        return "running"
    if isinstance(ended, MigrationCompleted):
        return "completed"
    return "stopped" if isinstance(ended, MigrationStopped) else "cancelled"


def build_report(view: MigrationView, now: datetime) -> Report:
    """The report of what is known by now; any prefix of a log has one. Depends on `view` and `now` alone."""
    spec, request, ended, passed = view.spec, view.request, view.ended, view.passed
    until = ended.at if ended else now
    spans = spans_of(view)
    windows, closing_from = _windows(view, until)
    began = min((window[0] for window in windows.values()), default=closing_from)
    overall = seconds_within(spans, began, until) if began else Seconds()
    rounds = [_round(view, n, seconds_within(spans, *window)) for n, window in windows.items()]
    trained = view.of_type(AdapterTrained)
    base = passed.candidate.base if passed else 0
    of_base = next((event for event in trained if event.base == base), None)
    holdout = marks_so_far(view, passed.candidate.key, "holdout") if passed else {}
    if isinstance(ended, MigrationCompleted) and not holdout:
        holdout = ended.holdout
    report = Report(
        made_at=now,
        migration=view.migration,
        name=spec.name if spec else None,
        status=_status(view),
        stage=view.stage,
        stopped_rule=ended.rule if isinstance(ended, MigrationStopped) else None,
        ended_because=ended.reason if ended else "",
        what_to_do=next_thing_to_do(view),
        requested_at=request.at if request else None,
        ended_at=ended.at if ended else None,
        base_model=BaseModelPart(
            model=spec.bases[base] if spec else None,
            digest=of_base.adapter.base_digest if of_base else None,
            marks=marks_so_far(view, Candidate(kind="base", base=base).key, "test"),
        ),
        service_llm=ServiceLLMPart(
            model=spec.service_llm.model if spec else None,
            base_url=_without_credentials(spec.service_llm.base_url) if spec else None,
            teacher=_named(spec.teacher_llm) if spec else None,
            judge=_named(spec.judge_llm) if spec else None,
            marks=marks_so_far(view, "service", "test"),
        ),
        nearest_row=marks_so_far(view, "nearest", "test"),
        gate=spec.gate.model_dump(mode="json") if spec else {},
        rounds=rounds,
        passed_round=passed.round if passed else None,
        holdout=holdout,
        trust=trust_of(view),
        serving=serving_of(view),
        confusion=confusions_of(view),
        served=_served(view),
        evaluators=_evaluators(view),
        seconds=overall,
        closing_seconds=seconds_within(spans, closing_from, until) if closing_from else Seconds(),
        calls=_calls(view, overall.wall),
        coverage_digest=request.coverage.sha256 if request else None,
        versions={name: version for event in trained for name, version in sorted(event.versions.items())},
    )
    marks_by_round = {part.number: part.marks for part in rounds}
    return report.model_copy(update={"warnings": warnings_of(view, marks_by_round, report.trust)})
