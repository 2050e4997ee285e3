"""The right to send a call: rate limits and the circuit breaker, held across all replicas of all services.

A replica takes a block of slots, no more than its waiting calls need and at most five seconds of them, by
compare-and-set, and sends each call at its slot: evenly spaced, never a burst. The clocks of the machines must agree
to well under a second.

The circuit breaker is in the same record, so all replicas learn with their next block that a provider is down, and
one probe a pause is sent by all of them together, not one by each. It is tripped by failures in a row of one replica,
which are counted locally: nothing is written while all is well.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

from llamaduo.bus.kv import KeyValue
from llamaduo.errors import ProviderDown
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm import metrics
from llamaduo.service_llm.cas import change
from llamaduo.service_llm.clock import Clock
from llamaduo.service_llm.pace import LATEST_S, NotBefore, Pace, Slot

T = TypeVar("T")

FAILURES_IN_A_ROW = 5
"""So many failures of a provider, with no answer between, and nothing more is sent for a while."""

PATIENCE_S = 30.0
"""A provider that is away for longer gets its callers' jobs put off."""

_LOOK_S = 1.0


@dataclass
class _Gate:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    slots: deque[Slot] = field(default_factory=deque)
    waiting: dict[int, int] = field(default_factory=dict)
    probed_since: float | None = None


def rate_key(llm: ServiceLLM) -> str:
    """Calls with the same provider, server and key share their limits, whichever model they ask."""
    return "pace." + content_digest([llm.model.split(":", 1)[0], llm.base_url, llm.api_key_env])[:32]


class Permits:
    """Slots of this replica."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv, self._clock = kv, clock
        self._gates: dict[tuple[str, int, int | None], _Gate] = {}
        self._corrections: dict[str, list[tuple[Slot, int]]] = {}
        self._failures: Counter[str] = Counter()
        self._down: set[str] = set()
        self._numbers = itertools.count()

    async def take(self, llm: ServiceLLM, tokens: int) -> Slot:
        """Wait for a slot for a call of at most so many tokens. Callers of one replica are served in order.

        ProviderDown where the provider stays away for longer than is worth waiting for.
        """
        gate = self._gates.setdefault((rate_key(llm), llm.requests_per_minute, llm.tokens_per_minute), _Gate())
        number = next(self._numbers)
        gate.waiting[number] = tokens
        try:
            async with gate.lock:
                while True:
                    if not gate.slots and not await self._fill(gate, llm):
                        continue
                    await self._until(gate.slots[0].at)
                    if not gate.slots:
                        continue
                    slot = gate.slots.popleft()
                    if self.fresh(slot) and slot.tokens >= min(tokens, llm.tokens_per_minute or tokens):
                        return slot
                    await self.unused(llm, slot)
        finally:
            del gate.waiting[number]

    def fresh(self, slot: Slot) -> bool:
        """Whether a call may still be sent in this slot."""
        return self._clock.now() - slot.at <= LATEST_S

    def down(self, llm: ServiceLLM) -> bool:
        """Whether the provider was down when this replica last looked."""
        return rate_key(llm) in self._down

    def _note_down(self, llm: ServiceLLM, down: bool) -> None:
        (self._down.add if down else self._down.discard)(rate_key(llm))
        metrics.note_circuit(llm, is_open=down)

    async def hold(self, llm: ServiceLLM, seconds: float) -> None:
        """Give out no slot for so long, to any replica: the provider asked for patience."""
        until = self._clock.now() + seconds
        self._clear(llm)

        def step(pace: Pace) -> None:
            pace.next = max(pace.next, until)

        await self._change(llm, step)

    async def unused(self, llm: ServiceLLM, slot: Slot) -> None:
        """Nothing was sent in this slot: its tokens are free again, and another call may be the probe."""
        self._correct(llm, slot, 0)
        if slot.probe:
            await self._change(llm, lambda pace: pace.drop_probe(slot.probe))

    async def answered(self, llm: ServiceLLM, slot: Slot, tokens: int | None) -> None:
        """The provider answered, be it with a refusal; a call that was done took `tokens`, None where none was."""
        if tokens is not None:
            self._correct(llm, slot, tokens)
        self._failures.pop(rate_key(llm), None)
        if slot.probe:
            self._note_down(llm, False)
            await self._change(llm, lambda pace: pace.close(slot.probe))

    async def failed(self, llm: ServiceLLM, slot: Slot, retry_after: float | None = None) -> None:
        """The provider failed, or nobody answered: after some in a row nothing is sent for a growing pause."""
        key = rate_key(llm)
        self._failures[key] += 1
        if slot.probe or self._failures[key] >= FAILURES_IN_A_ROW:
            self._failures.pop(key)
            self._note_down(llm, True)
            self._clear(llm)
            now = self._clock.now()
            await self._change(llm, lambda pace: pace.trip(now, slot.probe, retry_after or 0.0))

    async def _fill(self, gate: _Gate, llm: ServiceLLM) -> bool:
        """Take a block of slots; or wait a moment, False."""
        sizes, asker = list(gate.waiting.values()), uuid4().hex

        def step(pace: Pace) -> list[Slot] | NotBefore:
            return pace.grant(self._clock.now(), llm, sizes, asker)

        granted = await self._change(llm, step)
        now = self._clock.now()
        probed = isinstance(granted, NotBefore) and granted.why == "probed"
        gate.probed_since = (gate.probed_since or now) if probed else None
        if not isinstance(granted, NotBefore):
            if not granted[0].probe:
                self._note_down(llm, False)
            gate.slots.extend(granted)
            return True
        if granted.why != "tokens":
            self._note_down(llm, True)
            waits = granted.at - now if gate.probed_since is None else now - gate.probed_since
            if waits > PATIENCE_S:
                raise ProviderDown(f"{llm.model}: the provider is down", delay=min(granted.at - now, waits))
        await self._until(min(granted.at, now + _LOOK_S))
        return False

    async def _change(self, llm: ServiceLLM, step: Callable[[Pace], T]) -> T:
        """Change the key's record, and give back at the same time what calls have not taken of their slots."""
        key = rate_key(llm)
        corrections = self._corrections.pop(key, [])

        def changed(value: bytes | None) -> tuple[bytes | None, T]:
            before = Pace() if value is None else Pace.model_validate_json(value)
            pace = before.model_copy(deep=True)
            for slot, took in corrections:
                pace.correct(slot, took)
            result = step(pace)
            return (None if pace == before else pace.model_dump_json(exclude_defaults=True).encode()), result

        # A write that may have been taken gives nothing back a second time.
        return await change(self._kv, key, changed, self._clock, in_doubt=corrections.clear)

    def _correct(self, llm: ServiceLLM, slot: Slot, took: int) -> None:
        self._corrections.setdefault(rate_key(llm), []).append((slot, took))

    def _clear(self, llm: ServiceLLM) -> None:
        for (key, _, _), gate in self._gates.items():
            if key == rate_key(llm):
                for slot in gate.slots:
                    self._correct(llm, slot, 0)
                gate.slots.clear()

    async def _until(self, moment: float) -> None:
        wait = moment - self._clock.now()
        if wait > 0:
            await self._clock.sleep(wait)
