"""What calls to service LLMs cost and how they fare, as Prometheus sees it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge, Histogram

from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.sending import FailureKind, Reply

CALLS = Counter("llamaduo_service_llm_calls_total", "Calls sent, by what came of them", ["model", "outcome"])
CALL_SECONDS = Histogram(
    "llamaduo_service_llm_call_seconds",
    "Seconds from sending a call to its answer; not of calls in a batch",
    ["model"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120),
)
TOKENS = Counter("llamaduo_service_llm_tokens_total", "Tokens as the provider counted them", ["model", "direction"])
COST = Counter(
    "llamaduo_service_llm_cost_dollars_total", "US dollars for answers; 0 where no price is known", ["model"]
)
PERMIT_WAIT = Counter(
    "llamaduo_service_llm_permit_wait_seconds_total", "Seconds that calls waited for our own rate limits", ["model"]
)
BUDGET_REFUSALS = Counter(
    "llamaduo_service_llm_budget_refusals_total", "Calls not sent because a budget was used up", ["what"]
)
for _what in ("money", "calls", "tokens"):
    BUDGET_REFUSALS.labels(_what)
CIRCUIT_OPEN = Gauge(
    "llamaduo_service_llm_circuit_open", "1 while nothing is sent to a provider because it fails", ["provider"]
)


def note_answer(llm: ServiceLLM, reply: Reply, money: float, seconds: float | None) -> None:
    """An answer was bought; `seconds` is None for one of a batch."""
    CALLS.labels(llm.model, "answered").inc()
    TOKENS.labels(llm.model, "input").inc(reply.input_tokens)
    TOKENS.labels(llm.model, "output").inc(reply.output_tokens)
    COST.labels(llm.model).inc(money)
    if seconds is not None:
        CALL_SECONDS.labels(llm.model).observe(seconds)


def note_failure(llm: ServiceLLM, kind: FailureKind) -> None:
    """A call brought no answer."""
    CALLS.labels(llm.model, kind).inc()


@contextlib.contextmanager
def waiting(llm: ServiceLLM) -> Iterator[None]:
    """Inside, a call waits for its permit."""
    began = time.monotonic()
    try:
        yield
    finally:
        PERMIT_WAIT.labels(llm.model).inc(time.monotonic() - began)


def note_circuit(llm: ServiceLLM, *, is_open: bool) -> None:
    """The circuit breaker of this provider, and server where the spec names one, as this process knows it."""
    provider = llm.model.split(":", 1)[0]
    host = urlsplit(llm.base_url).netloc.rpartition("@")[2] if llm.base_url else ""
    CIRCUIT_OPEN.labels(f"{provider} at {host}" if host else provider).set(int(is_open))
