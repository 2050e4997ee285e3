"""How fast one key may be used: when its next slot is free, what its last minute took, whether its provider is down.

Pure: `permits.py` keeps one such record a key, shared by all replicas of all services, by compare-and-set.

Requests are given slots 2 % further apart than their limit asks; a slot may be used up to a second late. Calls differ
in tokens, so these are counted, in fifths of a second: no minute has room for more than its limit. There a slot takes
the most its call can take, and what it did not take is given back. Calls are spaced by what they will probably take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from llamaduo.migrations.spec import ServiceLLM

LATEST_S = 1.0
"""A slot older than this is given up: a replica that was stopped must not send its slots in one burst."""

HORIZON_S = 5.0
"""How far ahead a replica may take slots."""

_MINUTE_S = 60.0
_SPACING = 1.02
_BUCKET_S = 0.2
_KEPT_S = _MINUTE_S + LATEST_S + 0.05
_TOKEN_SPACING = (_KEPT_S + _BUCKET_S + 0.05) / _MINUTE_S
"""Uniform calls spaced so far apart have left the count just when the next one needs their place."""

_SOON_S = 1.0
_LEARNING = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_PROBE_GRACE_S = 30.0


@dataclass(frozen=True)
class Slot:
    """When a call may be sent, and with how many tokens at most. `probe`: it finds out whether the provider is back;
    the number says after which of its failures in a row, 0 for an ordinary slot."""

    at: float
    tokens: int
    probe: int = 0


@dataclass(frozen=True)
class NotBefore:
    """There is no slot yet. `why`: what earlier calls give back of their `tokens` may come sooner than `at`; the
    provider is `down` until then; or one call `probes` it now."""

    at: float
    why: Literal["tokens", "down", "probed"]


class Pace(BaseModel):
    """The record of one key; times in seconds since the epoch. `used` holds tokens by fifth of a second."""

    next: float = 0.0
    tokens_next: float = 0.0
    used: dict[int, int] = Field(default_factory=dict)
    taken: float = Field(1.0, description="share of its slot's tokens that a call has taken of late")
    trips: int = 0
    probe_ends: float = 0.0
    probe_of: str = ""

    def grant(self, now: float, llm: ServiceLLM, sizes: Sequence[int], asker: str) -> list[Slot] | NotBefore:
        """Take slots for calls of these sizes (tokens), in order, as many as lie within the horizon; at least one.

        An `asker` who asks once more, because it was not told what it got, is not kept waiting for its own probe.
        """
        self.used = {bucket: tokens for bucket, tokens in self.used.items() if _counts(bucket, now)}
        if self.trips:
            return self._probe(now, llm, sizes[0], asker)
        slots: list[Slot] = []
        for tokens in sizes:
            at = max(now, self.next)
            sooner = at
            if llm.tokens_per_minute is not None:
                # A call that might take more than a minute's tokens has a minute of its own.
                tokens = min(tokens, llm.tokens_per_minute)  # noqa: PLW2901
                at = self._room(max(at, self.tokens_next), tokens, llm.tokens_per_minute)
            if slots and at > now + HORIZON_S:
                break
            if at > max(sooner, now + _SOON_S):
                return slots or NotBefore(at, "tokens")
            slots.append(self._take(at, llm, tokens))
        return slots

    def correct(self, slot: Slot, took: int) -> None:
        """The call of a slot took so many tokens; 0: it was not sent."""
        bucket = _bucket(slot.at)
        if bucket in self.used:
            self.used[bucket] = max(0, self.used[bucket] - slot.tokens + took)
        if took:
            self.taken += _LEARNING * (min(1.0, took / slot.tokens) - self.taken)

    def trip(self, now: float, after: int, at_least: float = 0.0) -> None:
        """The provider is down: found by calls in a row (`after` 0), or by the probe of that number.

        Nothing is sent for a pause that doubles each time. No effect where this has been noted already.
        """
        if self.trips == after:
            self.trips += 1
            pause = min(_FIRST_PAUSE_S * 2.0 ** (self.trips - 1), _LONGEST_PAUSE_S)
            self.next = max(self.next, now + max(pause, at_least))
            self.probe_ends = 0.0

    def close(self, probe: int) -> None:
        """The probe of this number was answered: everybody may send again."""
        if self.trips == probe:
            self.trips, self.probe_ends = 0, 0.0

    def drop_probe(self, probe: int) -> None:
        """The probe of this number was never sent: another call may be it."""
        if self.trips == probe:
            self.probe_ends = 0.0

    def _probe(self, now: float, llm: ServiceLLM, tokens: int, asker: str) -> list[Slot] | NotBefore:
        if self.probe_ends > now and self.probe_of != asker:
            return NotBefore(self.probe_ends, "probed")
        if self.next > now and self.probe_of != asker:
            return NotBefore(self.next, "down")
        self.probe_of = asker
        self.probe_ends = now + llm.timeout_s + _PROBE_GRACE_S
        return [self._take(now, llm, tokens)]

    def _take(self, at: float, llm: ServiceLLM, tokens: int) -> Slot:
        self.next = at + _SPACING * _MINUTE_S / llm.requests_per_minute
        self.used[_bucket(at)] = self.used.get(_bucket(at), 0) + tokens
        if llm.tokens_per_minute is not None:
            gap = _TOKEN_SPACING * _MINUTE_S / llm.tokens_per_minute
            self.tokens_next = max(at, self.tokens_next) + self.taken * tokens * gap
        return Slot(at, tokens, self.trips)

    def _room(self, at: float, tokens: int, limit: int) -> float:
        """The first moment from `at` on at which the minute before has room for so many tokens."""
        left = sorted(bucket for bucket in self.used if _counts(bucket, at))
        total = sum(self.used[bucket] for bucket in left)
        for bucket in left:
            if total + tokens <= limit:
                break
            total -= self.used[bucket]
            at = max(at, (bucket + 1) * _BUCKET_S + _KEPT_S)
        return at


def _bucket(at: float) -> int:
    return math.floor(at / _BUCKET_S)


def _counts(bucket: int, now: float) -> bool:
    """Whether a call of this bucket may be in the same minute as one that is sent from `now` on."""
    return (bucket + 1) * _BUCKET_S + _KEPT_S > now + 1e-6
