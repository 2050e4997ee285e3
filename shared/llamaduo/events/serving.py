"""What is served, how fast, under which alias, and the traffic it sees."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from llamaduo.event_parts import Adapter, ArtifactRef, Candidate, Sha256, WorkSpan
from llamaduo.events.base import Event, OfRound


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
