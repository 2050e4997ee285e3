"""Where a migration's time went, from the work intervals that the result events carry."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.event_parts import WorkSpan
from llamaduo.events import AdapterTrained, DatasetReady, EvalScored, ResponsesGenerated, ServingMeasured
from llamaduo.migrations.fold import MigrationView

Stage = Literal["training", "generation", "service_llm", "marking"]
STAGE_OF: dict[str, Stage] = {
    "training": "training",
    "generation": "generation",
    "model_load": "generation",
    "service_llm": "service_llm",
    "marking": "marking",
}


class Seconds(BaseModel):
    """Seconds of a window by stage.

    A stage counts the moments in which at least one of its pieces of work ran, however many ran at once.
    Stages may overlap, so they may add up to more than `wall`; `other` is what no work of any service covers.
    """

    model_config = ConfigDict(frozen=True)
    training: float = Field(0.0, description="an adapter was being trained")
    generation: float = Field(0.0, description="local answers were being made, or a model loaded")
    service_llm: float = Field(0.0, description="a call to the service LLM, teacher or judge was under way")
    marking: float = Field(0.0, description="an evaluator was marking, its calls to a judge included")
    other: float = Field(0.0, description="no work of any service: process starts, hand-overs, waiting")
    wall: float = Field(0.0, description="by the clock")
    other_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="`other` / `wall`, both without what came before the migration's first work",
    )


def spans_of(view: MigrationView) -> list[WorkSpan]:
    """All work intervals of a migration; one that ends before it begins is left out."""
    events: list[DatasetReady | AdapterTrained | ResponsesGenerated | EvalScored | ServingMeasured] = [
        *view.of_type(DatasetReady),
        *view.of_type(AdapterTrained),
        *view.of_type(ResponsesGenerated),
        *view.of_type(EvalScored),
        *view.of_type(ServingMeasured),
    ]
    return [span for event in events for span in event.work if span.ended > span.began]


def covered(spans: Iterable[tuple[datetime, datetime]], began: datetime, ended: datetime) -> float:
    """Seconds within [began, ended] that at least one span covers."""
    total, reached = 0.0, began
    for start, stop in sorted(spans):
        first, last = max(start, reached), min(stop, ended)
        if last > first:
            total += (last - first).total_seconds()
            reached = last
    return total


def seconds_within(spans: list[WorkSpan], began: datetime, ended: datetime) -> Seconds:
    """Seconds by stage within a window; all zero if it is empty."""
    wall = max(0.0, (ended - began).total_seconds())
    if wall == 0:
        return Seconds()
    by_stage: dict[Stage, list[tuple[datetime, datetime]]] = {}
    for span in spans:
        by_stage.setdefault(STAGE_OF[span.kind], []).append((span.began, span.ended))
    busy = covered(((span.began, span.ended) for span in spans), began, ended)
    other = max(0.0, wall - busy)
    first_work = min((span.began for span in spans), default=began)
    before_first = min(wall, max(0.0, (first_work - began).total_seconds()))
    counted = wall - before_first
    return Seconds(
        other=round(other, 3),
        wall=round(wall, 3),
        other_share=round(min(1.0, max(0.0, other - before_first) / counted), 4) if counted > 0 else 0.0,
        **{stage: round(covered(pairs, began, ended), 3) for stage, pairs in by_stage.items()},
    )
