"""Progress: how far work in hand is. Core NATS, never stored, never decided on."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field


class Progress(BaseModel):
    """`done` of `total` units (steps, rows, calls) of one stage of one round."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    service: str
    replica: str = ""
    migration: str
    round: int | None = None
    stage: str
    done: float
    total: float
    note: str = ""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
