"""Values inside events: what several events carry, each described once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llamaduo.tool_calls import ToolWording


def _in_utc(time: datetime) -> datetime:
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("no such time in UTC") from error


Time = Annotated[datetime, AfterValidator(_in_utc)]
"""In UTC; one without a zone is taken as UTC, since it could not be compared with others."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Split = Literal["train", "validation", "test", "holdout"]
MarkedSplit = Literal["test", "holdout"]


class Part(BaseModel):
    """A value inside an event: frozen, tolerant of fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ArtifactRef(Part):
    """Where some bytes are and what they must be. `uri` is `obj:<sha256>` in the default store, else a URL."""

    uri: str
    sha256: Sha256
    size: int = Field(ge=0, description="bytes")
    media_type: str = "application/octet-stream"


class WorkSpan(Part):
    """When model work itself ran, as opposed to waiting or starting. Not part of any id."""

    kind: Literal["training", "generation", "service_llm", "model_load", "marking"]
    began: Time
    ended: Time


class CallCounts(Part):
    """Service-LLM calls behind one result."""

    made: int = 0
    batched: int = Field(0, description="of those made: answered in a batch, at its lower price")
    from_ledger: int = 0
    rebought: int = Field(0, description="calls in flight at a kill that may have been paid twice")
    failed: int = Field(0, description="tries that brought no answer: 429s, errors, timeouts, refusals of a request")
    limited: int = Field(0, description="of the failed tries: 429s")
    refused: int = Field(0, description="calls that the provider will not answer, paid or not")
    cut: int = Field(0, description="answers cut off at their token limit")
    empty: int = Field(0, description="answers without text")
    odd: int = Field(0, description="typed answers not as asked, but read: prose around, '85/100', bad items")
    unreadable: int = Field(0, description="typed answers of which nothing could be used")
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = Field(0.0, description="US dollars; 0 where no price is known")

    def __add__(self, other: CallCounts) -> CallCounts:
        return CallCounts(**{k: getattr(self, k) + getattr(other, k) for k in CallCounts.model_fields})


class Adapter(Part):
    """A LoRA adapter as content: its files by name; `digest` is over sorted (name, sha256) pairs."""

    digest: Sha256
    files: dict[str, ArtifactRef]
    base_model: str
    base_digest: str
    rank: int
    tool_wording: ToolWording = "text"


class Candidate(Part):
    """Who answers: the untrained base, the service LLM itself, or the adapter of a round.

    `nearest` is no model: it copies the answer of the train row whose prompt is most alike.
    """

    kind: Literal["base", "service", "adapter", "nearest"]
    round: int | None = None
    adapter: Adapter | None = None
    base: int = Field(0, ge=0, description="which of the spec's base models it is or was trained from; 0: the first")

    @property
    def key(self) -> str:
        """`base`, `service`, `nearest` or `round-<n>`; of another base model than the first `base-<k>` or
        `round-<n>-base-<k>`. Part of ids.
        """
        of = f"base-{self.base}" if self.base else "base"
        if self.kind == "adapter":
            return f"round-{self.round}-{of}" if self.base else f"round-{self.round}"
        return of if self.kind == "base" else self.kind


class MetricRange(Part):
    """What a mark of this metric can be; the verdict scales it to [0, 1], higher is better."""

    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True


_FIELDS_OF_A_MARK = {"row", "sample", "metric", "value", "reason"}


class RowMark(Part):
    """One evaluator's mark for one answer to one prompt; `value` None means it abstained or failed."""

    row: str
    sample: int = 0
    metric: str
    value: float | None
    reason: str = Field("", max_length=400)

    def model_post_init(self, _context: object) -> None:
        """A log has marks by the hundred thousand, and a set of its own in each is more than the mark itself."""
        object.__setattr__(self, "__pydantic_fields_set__", _FIELDS_OF_A_MARK)


class LabelCount(Part):
    """How many answers of a shard gave this label where the reference has that one."""

    expected: str = Field(description="the label of the reference")
    given: str = Field(description="the label of the answer; empty where it has none")
    answers: int = Field(1, ge=1)


class Interval(Part):
    """A mean on the metric's own scale with its confidence interval over `n` prompts."""

    mean: float
    low: float
    high: float
    n: int


Marks = dict[str, dict[str, Interval]]
"""evaluator -> metric -> interval"""


class FailingRow(Part):
    """A test row the candidate got wrong: its id, mean mark on [0, 1] and the evaluators' reasons."""

    row: str
    mark: float
    reasons: list[str] = Field(default_factory=list)


class WeakRow(Part):
    """A validation row whose answer an adapter would not give word for word."""

    row: str
    loss: float = Field(description="nats a token of the answer")


class PreferenceTraining(Part):
    """DPO on a model's own wrong answers to train rows: what it came from, and whether it was kept.

    The figures before and after are of validation rows; there are none where there was no wrong answer to learn from.
    """

    asked: int = Field(description="train rows that the model answered")
    pairs: int = Field(description="of these, answered in other words than the row's own")
    kept: bool = False
    validated: int = Field(0, description="validation rows that the model answered")
    exact_before: int | None = Field(None, description="of these, answered word for word")
    exact_after: int | None = None
    loss_before: float | None = Field(None, description="of all validation rows, nats a token")
    loss_after: float | None = None


class BaseVerdict(Part):
    """What became of one of several base models in a round."""

    base: int = Field(ge=0, description="which of the spec's base models, from 0")
    verdict: Literal["passed", "failed", "undecided", "lost"] = Field(
        description="lost: its training or its answers went to the dead letters"
    )
    marks: Marks = Field(default_factory=dict)
    rows: int = Field(0, description="test prompts marked when that was known")
    note: str = ""
