"""The rate limit, held across all replicas of all services: one record says when the next slot is free.

A replica takes a block of slots, no more than its waiting calls need and at most five seconds of them, by
compare-and-set, and sends each call at its slot: evenly spaced, never a burst. The slots lie 2 % further apart than
the limit asks and may be used up to a second late, so no window of a minute ever sees more than the limit. The clocks
of the machines must agree to well under a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from llamaduo.bus.kv import KeyValue
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.cas import change
from llamaduo.service_llm.clock import Clock

LATEST_S = 1.0
"""A slot older than this is given up: a replica that was stopped must not send its slots in one burst."""

_SPACING = 1.02
_HORIZON_S = 5.0


@dataclass
class _Gate:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    slots: deque[float] = field(default_factory=deque)
    waiting: int = 0


def rate_key(llm: ServiceLLM) -> str:
    """Calls with the same provider, server and key share one limit."""
    return "rate." + content_digest([llm.model.split(":", 1)[0], llm.base_url, llm.api_key_env])[:32]


class Permits:
    """Slots of this replica."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv, self._clock = kv, clock
        self._gates: dict[tuple[str, int], _Gate] = {}

    async def take(self, llm: ServiceLLM) -> float:
        """Wait for a slot; its time. Callers of one replica are served in order."""
        gate = self._gates.setdefault((rate_key(llm), llm.requests_per_minute), _Gate())
        gate.waiting += 1
        try:
            async with gate.lock:
                while True:
                    if not gate.slots:
                        gate.slots.extend(await self._block(llm, gate.waiting))
                    await self._until(gate.slots[0])
                    if gate.slots and self.fresh(slot := gate.slots.popleft()):
                        return slot
        finally:
            gate.waiting -= 1

    def fresh(self, slot: float) -> bool:
        """Whether a call may still be sent in this slot."""
        return self._clock.now() - slot <= LATEST_S

    async def hold(self, llm: ServiceLLM, seconds: float) -> None:
        """Give out no slot for so long, to any replica: the provider asked for patience."""
        until = self._clock.now() + seconds
        for (key, _), gate in self._gates.items():
            if key == rate_key(llm):
                gate.slots.clear()

        def step(value: bytes | None) -> tuple[bytes | None, None]:
            return (None if value is not None and float(value) >= until else repr(until).encode()), None

        await change(self._kv, rate_key(llm), step, self._clock)

    async def _until(self, slot: float) -> None:
        wait = slot - self._clock.now()
        if wait > 0:
            await self._clock.sleep(wait)

    async def _block(self, llm: ServiceLLM, wanted: int) -> list[float]:
        gap = _SPACING * 60.0 / llm.requests_per_minute
        size = max(1, min(wanted, int(_HORIZON_S / gap)))

        def step(value: bytes | None) -> tuple[bytes | None, float]:
            first = max(self._clock.now(), 0.0 if value is None else float(value))
            return repr(first + size * gap).encode(), first

        first = await change(self._kv, rate_key(llm), step, self._clock)
        return [first + number * gap for number in range(size)]
