"""What the report says of each round's base models, where the spec has several."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.event_parts import Marks
from llamaduo.migrations.fold import MigrationView


class BaseInRound(BaseModel):
    """What became of one of several base models in a round."""

    model_config = ConfigDict(frozen=True)
    model: str
    verdict: Literal["passed", "failed", "undecided", "lost"] | None = Field(
        None, description="None: not looked at, since a smaller one passed, or not decided yet"
    )
    note: str = ""
    marked: int = Field(0, description="test prompts marked when that was known")
    marks: Marks = Field(default_factory=dict)
    adapter_digest: str | None = None
    steps: int | None = None
    validation_loss: float | None = None


def bases_of(view: MigrationView, number: int) -> dict[str, Any]:
    """The fields `base_model` and `bases` of a round's part; none where there is just one base model."""
    names = view.spec.bases if view.spec else []
    if len(names) < 2:
        return {}
    decided = view.decision(number)
    told = {one.base: one for one in decided.bases} if decided else {}
    parts = []
    for base, name in enumerate(names):
        part: dict[str, Any] = {"model": name}
        if (one := told.get(base)) is not None:
            part |= {"verdict": one.verdict, "note": one.note, "marked": one.rows, "marks": one.marks}
        if (trained := view.adapter(number, base)) is not None:
            part |= {"adapter_digest": trained.adapter.digest}
            part |= {"steps": trained.steps, "validation_loss": trained.validation_loss}
        parts.append(BaseInRound(**part))
    return {"base_model": names[view.shown_base(number)], "bases": parts}
