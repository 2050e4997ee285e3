"""Spans of jobs and rounds, sent by OpenTelemetry (OTLP over HTTP) where a setting names a collector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from llamaduo.bus.trace import Place, place_now, root_span, trace_id
from llamaduo.events import AnyEvent, EvalFailed, EvalPassed, Event
from llamaduo.migrations.fold import MigrationView

SEND_TIMEOUT_S = 5
FLUSH_MS = 3000


class _GivenIds(RandomIdGenerator):
    """Ids that were made before the span: its events carried them already."""

    trace, span = "", ""

    def generate_trace_id(self) -> int:
        return int(self.trace, 16)

    def generate_span_id(self) -> int:
        return int(self.span, 16)


class Tracing:
    """Tells a collector of one process's jobs. Sending is done beside the work; what cannot be sent is dropped."""

    def __init__(self, endpoint: str, service: str, replica: str) -> None:
        """`endpoint`: full address, such as http://collector:4318/v1/traces."""
        self._ids = _GivenIds()
        resource = Resource.create({"service.name": f"llamaduo-{service}", "service.instance.id": replica})
        self._provider = TracerProvider(id_generator=self._ids, resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("llamaduo")
        self._told: set[tuple[str, int]] = set()

    def job(
        self,
        event: AnyEvent,
        role: str,
        *,
        attempt: int,
        outcome: str,
        seconds: float,
        results: Sequence[Event],
        view: MigrationView | None,
    ) -> None:
        """A job is over, just now. One that looked and found nothing to do is not told."""
        place = place_now()
        if place is None or (outcome == "done" and not results):
            return
        end = time.time_ns()
        attributes: dict[str, str | int] = {
            "llamaduo.migration": event.migration,
            "llamaduo.round": place.round,
            "llamaduo.role": role,
            "llamaduo.event": event.id,
            "llamaduo.outcome": outcome,
            "llamaduo.attempt": attempt,
            "messaging.system": "nats",
            "messaging.destination.name": event.type,
        }
        self._span(
            f"{role} {event.type}", place, attributes, end - int(seconds * 1e9), end, failed=outcome == "error"
        )
        for result in results:
            if isinstance(result, EvalFailed | EvalPassed) and view is not None:
                self._round(result, view, end)

    def _round(self, decided: EvalFailed | EvalPassed, view: MigrationView, end: int) -> None:
        if (decided.migration, decided.round) in self._told or (began := _began(view, decided.round)) is None:
            return
        self._told.add((decided.migration, decided.round))
        trace, span = trace_id(decided.migration, decided.round), root_span(decided.migration, decided.round)
        attributes: dict[str, str | int] = {
            "llamaduo.migration": decided.migration,
            "llamaduo.round": decided.round,
            "llamaduo.verdict": decided.verdict,
        }
        place = Place(trace, span, "", None, decided.round)
        self._span(f"round {decided.round}", place, attributes, int(began.timestamp() * 1e9), end, failed=False)

    def _span(
        self, name: str, place: Place, attributes: dict[str, str | int], start: int, end: int, *, failed: bool
    ) -> None:
        self._ids.trace, self._ids.span = place.trace, place.span
        parent = set_span_in_context(NonRecordingSpan(_context(place.trace, place.parent))) if place.parent else None
        links = [Link(_context(*place.cause))] if place.cause else []
        span = self._tracer.start_span(name, context=parent, attributes=attributes, links=links, start_time=start)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send what is left, for some seconds at most. Blocks: not for the event loop."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def _context(trace: str, span: str) -> SpanContext:
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _began(view: MigrationView, number: int) -> datetime | None:
    """A round begins with the decision before it, the first with the submission."""
    before = view.decision(number - 1) if number else view.request
    return None if before is None else before.at
