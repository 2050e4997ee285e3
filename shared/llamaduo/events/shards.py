"""Shards of prompts, answers and marks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llamaduo.event_parts import ArtifactRef, CallCounts, LabelCount, MetricRange, RowMark, WorkSpan
from llamaduo.events.base import OfShard, ShardAsked


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
