"""What the report says about how fast the adapter is served."""

from __future__ import annotations

from html import escape
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.report_tables import table
from llamaduo.migrations.serving_gate import judge_serving, percentile, rate_of


class ServingPart(BaseModel):
    """How fast the engine that serves a round's adapter answered a burst of test prompts. Times in seconds."""

    model_config = ConfigDict(frozen=True)
    round: int
    verdict: Literal["passed", "failed", "undecided"] = Field(description="against gate.serving")
    told: str = Field(description="what this box carries, how that was measured, and what the gate asks")
    requests_per_second: float = Field(description="whole answers, over the whole burst")
    latency_p50_s: float | None = Field(None, description="None: nothing could be measured")
    latency_p95_s: float | None = None
    requests: int = Field(description="that were measured")
    asked: int = Field(description="that were to be measured")
    concurrency: int = Field(description="requests in flight")
    wall_s: float
    tokens_per_second: float = Field(description="generated, over the whole burst")
    name: str = Field(description="the name under which the adapter was served")
    replica: str
    url: str = ""


def serving_of(view: MigrationView) -> ServingPart | None:
    """Of the last round that was measured; None where none was."""
    every = [measured for n in view.rounds if (measured := view.measured(n, view.shown_base(n))) is not None]
    measured = every[-1] if every else None
    if view.spec is None or measured is None:
        return None
    speed, seconds = judge_serving(view.spec.gate, measured), measured.seconds
    return ServingPart(
        round=measured.round,
        verdict=speed.verdict,
        told=speed.told,
        requests_per_second=round(rate_of(measured), 4),
        latency_p50_s=percentile(seconds, 0.5) if seconds else None,
        latency_p95_s=percentile(seconds, 0.95) if seconds else None,
        requests=len(seconds),
        asked=measured.asked,
        concurrency=measured.concurrency,
        wall_s=measured.wall_s,
        tokens_per_second=round(measured.output_tokens / measured.wall_s, 2) if measured.wall_s else 0.0,
        name=measured.name,
        replica=measured.replica,
        url=measured.url,
    )


def serving_section(part: ServingPart | None) -> str:
    """The section of the page; nothing where nothing was measured."""
    if part is None:
        return ""
    cells = [
        f"round {part.round}",
        f"{part.requests_per_second:.3g}",
        "–" if part.latency_p50_s is None else f"{part.latency_p50_s:.3g} s",
        "–" if part.latency_p95_s is None else f"{part.latency_p95_s:.3g} s",
        f"{part.tokens_per_second:.3g}",
        f"{part.requests} of {part.asked}",
        str(part.concurrency),
        part.verdict,
    ]
    head = ["", "requests/s", "half within", "95 of 100 within", "tokens/s", "requests", "in flight", "gate.serving"]
    said = part.told[:1].upper() + part.told[1:]
    return f"<h2>As served</h2><p>{escape(said)}.</p>{table(head, [cells], range(1, 7))}"
