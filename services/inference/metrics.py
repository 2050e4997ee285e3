"""What inference does, as Prometheus sees it. vLLM's own figures are passed on at /metrics/engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from prometheus_client import Counter, Gauge, Histogram

from services.inference.engine import Generation

SHARDS = Counter("llamaduo_shards_answered_total", "Shards answered, or skipped as nobody needs them", ["outcome"])
ANSWERS = Counter("llamaduo_answers_total", "Answers generated", ["candidate"])
TOKENS = Counter("llamaduo_answer_tokens_total", "Tokens of prompts and of answers", ["direction"])
ADAPTER_LOADS = Counter("llamaduo_adapter_loads_total", "Adapters that the engine was asked to serve", ["outcome"])
ADAPTER_LOAD_SECONDS = Histogram(
    "llamaduo_adapter_load_seconds",
    "Seconds to fetch, check, load and probe an adapter; short where it was loaded already",
    buckets=(0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
ENGINE_CHANGES = Counter("llamaduo_engine_changes_total", "Engines started: at first, and for another base model")
ENGINE_UP = Gauge("llamaduo_engine_up", "1 while the engine can answer; 0 while it is down, or none was started")
ALIASES_WANTED = Gauge("llamaduo_aliases", "Aliases that mean an adapter")
ALIASES_UNSERVED = Gauge("llamaduo_aliases_unserved", "Aliases whose adapter this replica does not serve")


def note_answers(candidate: str, generations: Sequence[Generation]) -> None:
    """A shard was answered by a `candidate` of this kind."""
    SHARDS.labels("answered").inc()
    ANSWERS.labels(candidate).inc(sum(len(generation.answers) for generation in generations))
    TOKENS.labels("input").inc(sum(generation.prompt_tokens for generation in generations))
    TOKENS.labels("output").inc(sum(generation.completion_tokens for generation in generations))


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Inside, an adapter is loaded."""
    began, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "loaded"
    finally:
        ADAPTER_LOADS.labels(outcome).inc()
        ADAPTER_LOAD_SECONDS.observe(time.monotonic() - began)


def note_state(*, up: bool, aliases: int, unserved: int) -> None:
    """How the engine is now, and what it should serve."""
    ENGINE_UP.set(int(up))
    ALIASES_WANTED.set(aliases)
    ALIASES_UNSERVED.set(unserved)
