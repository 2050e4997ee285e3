"""W3C trace context: one trace for each round of a migration, across all services.

The trace's id follows from migration and round, so nobody has to hand it on; who caused what is handed on in the
`traceparent` header of events. A job on what a failed round sets off belongs to the next round.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from llamaduo.events import AnyEvent, EvalFailed, Event
from llamaduo.identity import identity

MOST_ROUNDS = 100
_HEADER = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(frozen=True)
class Place:
    """Where a job stands: ids in hex. `cause` is the span, perhaps of the round before, whose event set it off."""

    trace: str
    span: str
    parent: str
    cause: tuple[str, str] | None
    round: int


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


def trace_id(migration: str, number: int) -> str:
    """Of a round."""
    return identity("trace", migration, number)[:32]


def root_span(migration: str, number: int) -> str:
    """The span of the round as a whole."""
    return identity("round", migration, number)[:16]


def round_of(event: Event) -> int | None:
    """The round that a job on this event belongs to; None where the event does not say."""
    if isinstance(event, EvalFailed):
        return event.round + 1
    number = getattr(event, "round", None)
    if number is None:
        number = getattr(getattr(event, "candidate", None), "round", None)
    return number if isinstance(number, int) else None


def traceparent(event: Event) -> str:
    """The header of an event that is published: the span of the job in hand, else the event's round itself."""
    if (place := _PLACE.get()) is not None:
        return f"00-{place.trace}-{place.span}-01"
    number = round_of(event) or 0
    return f"00-{trace_id(event.migration, number)}-{root_span(event.migration, number)}-01"


def place_of(event: AnyEvent, headers: Mapping[str, str] | None) -> Place:
    """Where a job on this event stands, with a span of its own."""
    told = _HEADER.fullmatch((headers or {}).get("traceparent", ""))
    number = round_of(event)
    if number is None and told is not None:
        traces = (trace_id(event.migration, n) for n in range(MOST_ROUNDS))
        number = next((n for n, trace in enumerate(traces) if trace == told[1]), None)
    number = number or 0
    trace = trace_id(event.migration, number)
    within = told is not None and told[1] == trace
    return Place(
        trace=trace,
        span=secrets.token_hex(8),
        parent=told[2] if told is not None and within else root_span(event.migration, number),
        cause=(told[1], told[2]) if told is not None and not within else None,
        round=number,
    )


@contextlib.contextmanager
def job_on(event: AnyEvent, headers: Mapping[str, str] | None) -> Iterator[None]:
    """Inside, what is published was caused by the job on this event."""
    token = _PLACE.set(place_of(event, headers))
    try:
        yield
    finally:
        _PLACE.reset(token)


def place_now() -> Place | None:
    """Of the job in hand."""
    return _PLACE.get()
