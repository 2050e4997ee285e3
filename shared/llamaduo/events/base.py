"""What events share, and those about a round or a shard."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, computed_field

from llamaduo.event_parts import ArtifactRef, Candidate, MarkedSplit, Time
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


class OfRound(Event):
    """An event about one round as a whole."""

    round: int = Field(ge=0)

    def job_key(self) -> tuple[str | int, ...]:
        return (self.round,)


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
