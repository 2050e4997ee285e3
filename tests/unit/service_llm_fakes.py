"""Stand-ins for tests of the service LLM's client: a virtual clock, a provider, and buckets that lose or die."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nats.errors import TimeoutError as NatsTimeout

from llamaduo.bus.kv import Entry, KeyValue, MemoryKeyValue
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Call, Reply, SendFailed, ServiceLLMClient
from llamaduo.service_llm.batches import Tell
from llamaduo.service_llm.sending_batches import BatchLook, SendBatches

T = TypeVar("T")

LLM = ServiceLLM(model="openai:gpt-4o", requests_per_minute=60_000)
FREE = Budgets()


class VirtualClock:
    """Time that passes only when everybody waits for it."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._waiting, (self._now + max(0.0, seconds), self._number, future))
        await future

    def jump(self, seconds: float) -> None:
        """Let time pass at once, as for a process that was stopped."""
        self._now += seconds

    async def run(self, work: Awaitable[T]) -> T:
        """Run `work` to its end, moving time on whenever nothing else can happen."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await quiet()
            while not task.done() and self._waiting:
                at, _, future = heapq.heappop(self._waiting)
                if not future.done():
                    self._now = max(self._now, at)
                    future.set_result(None)
                    break
        return task.result()


async def quiet(turns: int = 60) -> None:
    """Let everything that can run without time passing run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All at once."""
    return list(await asyncio.gather(*work))


async def outcome(work: Awaitable[T]) -> T | Exception:
    """What comes of it, an error as a value."""
    try:
        return await work
    except Exception as error:
        return error


class FakeProvider:
    """A `Send` that counts what it is paid for, by idempotency key."""

    def __init__(
        self,
        clock: VirtualClock | None = None,
        *,
        latency: float = 0.0,
        reply: Callable[[Call], Reply | SendFailed | Exception] | None = None,
    ) -> None:
        self.clock, self.latency = clock, latency
        self.sends: list[tuple[float, str]] = []
        self.closed = False
        self.paid: Counter[str] = Counter()
        self.tokens = 0
        self.now_in_flight = self.most_in_flight = 0
        self._reply = reply or (lambda call: Reply(f"re: {call.messages[-1]['content']}", "stop", 10, 5))

    async def close(self) -> None:
        self.closed = True

    async def __call__(self, call: Call, idempotency_key: str) -> Reply:
        self.sends.append((self.clock.now() if self.clock else 0.0, idempotency_key))
        self.now_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.now_in_flight)
        try:
            if self.clock is not None and self.latency:
                await self.clock.sleep(self.latency)
            reply = self._reply(call)
            if isinstance(reply, Exception):
                raise reply
            self.paid[idempotency_key] += 1
            self.tokens += reply.input_tokens + reply.output_tokens
            return reply
        finally:
            self.now_in_flight -= 1


@dataclass
class SentBatch:
    """A batch as its provider has it; `cancelled` is when that was asked for."""

    tag: str
    calls: list[Call]
    sent: float
    cancelled: float | None = None
    done: dict[str, Reply | SendFailed] | None = None


class FakeBatches:
    """A provider of batches: each is done `takes` seconds after it was sent, and so it is when cancelled.

    `fate` says what comes of a call; None: the batch does not come to it. `look` may put another word for how far it
    is; `fuse` is of the process that asks.
    """

    def __init__(
        self,
        clock: VirtualClock,
        *,
        takes: float = 600.0,
        fate: Callable[[Call], Reply | SendFailed | None] | None = None,
        look: Callable[[BatchLook], BatchLook] = lambda seen: seen,
        fuse: Fuse | None = None,
    ) -> None:
        self.clock, self.takes, self.look_so, self.fuse = clock, takes, look, fuse
        self.sent: dict[str, SentBatch] = {}
        self.paid: Counter[str] = Counter()
        self.start_failures: list[tuple[bool, SendFailed]] = []
        """The next sends fail so; True: the batch is taken all the same."""
        self._fate = fate or (lambda call: Reply(f"re: {call.messages[-1]['content']}", "stop", 10, 5))

    def _step(self) -> None:
        if self.fuse is not None:
            self.fuse.step()

    async def start(self, _llm: ServiceLLM, tag: str, calls: Sequence[Call]) -> str:
        self._step()
        taken, failure = self.start_failures.pop(0) if self.start_failures else (True, None)
        name = f"batch_{len(self.sent)}"
        if taken:
            self.sent[name] = SentBatch(tag, list(calls), self.clock.now())
        if failure is not None:
            raise failure
        self._step()
        return name

    async def find(self, _llm: ServiceLLM, tag: str, since: float) -> str | None:
        self._step()
        return next((name for name, one in self.sent.items() if one.tag == tag and one.sent >= since), None)

    async def look(self, _llm: ServiceLLM, batch: str) -> BatchLook:
        self._step()
        one, now = self.sent[batch], self.clock.now()
        if one.done is None and now >= one.sent + self.takes:
            one.done = {call.key: fate for call in one.calls if (fate := self._fate(call)) is not None}
            self.paid.update(key for key, fate in one.done.items() if isinstance(fate, Reply))
        elif one.done is None and one.cancelled is not None:
            one.done = {}
        status = "in_progress" if one.done is None else "completed" if one.cancelled is None else "cancelled"
        return self.look_so(
            BatchLook(status, one.done is not None, len(one.done or {}), failed=0, total=len(one.calls))
        )

    async def cancel(self, _llm: ServiceLLM, batch: str) -> None:
        self.sent[batch].cancelled = self.clock.now()

    async def replies(
        self, _llm: ServiceLLM, batch: str, calls: Mapping[str, Call]
    ) -> Mapping[str, Reply | SendFailed]:
        self._step()
        done = self.sent[batch].done
        assert done is not None and set(done) <= set(calls)
        return done

    async def close(self) -> None:
        pass


class LossyKeyValue:
    """A bucket on a shaky connection: calls interleave, fail, or succeed without saying so."""

    def __init__(self, inner: KeyValue, seed: int, loss: float = 0.0) -> None:
        self._inner, self._random, self._loss = inner, random.Random(seed), loss

    async def _before(self) -> None:
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)
        if self._random.random() < self._loss:
            raise NatsTimeout

    def _after(self) -> None:
        if self._random.random() < self._loss:
            raise NatsTimeout

    async def get(self, key: str) -> Entry | None:
        await self._before()
        return await self._inner.get(key)

    async def create(self, key: str, value: bytes) -> int:
        await self._before()
        revision = await self._inner.create(key, value)
        self._after()
        return revision

    async def update(self, key: str, value: bytes, revision: int) -> int:
        await self._before()
        new = await self._inner.update(key, value, revision)
        self._after()
        return new

    async def keys(self, prefix: str) -> list[str]:
        return await self._inner.keys(prefix)


class Killed(BaseException):
    """The process is gone."""


class Fuse:
    """Blows at the n-th step of a process: nothing that comes later happens."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


class MortalKeyValue:
    """A bucket as seen by a process that dies when its fuse blows, before a write or right after it."""

    def __init__(self, inner: KeyValue, fuse: Fuse) -> None:
        self._inner, self._fuse = inner, fuse

    async def get(self, key: str) -> Entry | None:
        self._fuse.step()
        await asyncio.sleep(0)
        return await self._inner.get(key)

    async def create(self, key: str, value: bytes) -> int:
        self._fuse.step()
        revision = await self._inner.create(key, value)
        self._fuse.step()
        return revision

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._fuse.step()
        new = await self._inner.update(key, value, revision)
        self._fuse.step()
        return new

    async def keys(self, prefix: str) -> list[str]:
        return await self._inner.keys(prefix)


class Buckets:
    """The three buckets that all replicas share."""

    def __init__(self) -> None:
        self.ledger, self.budget, self.permits = MemoryKeyValue(), MemoryKeyValue(), MemoryKeyValue()

    def client(
        self,
        provider: FakeProvider,
        clock: VirtualClock,
        *,
        replica: str = "a",
        wrap: Callable[[KeyValue], KeyValue] = lambda kv: kv,
        max_tries: int = 6,
        batches: SendBatches | None = None,
        ended: Callable[[str], bool] = lambda _migration: False,
        tell: Tell | None = None,
    ) -> ServiceLLMClient:
        return ServiceLLMClient(
            ledger=wrap(self.ledger),
            budget=wrap(self.budget),
            permits=wrap(self.permits),
            replica=replica,
            send=provider,
            send_batches=batches,
            ended=ended,
            tell=tell,
            clock=clock,
            max_tries=max_tries,
        )


def call(
    text: str = "hello", *, job: str = "job-1", migration: str = "m1", llm: ServiceLLM = LLM, **more: Any
) -> Call:
    """A call that asks `text`."""
    more.setdefault("max_tokens", 20)
    return Call(messages=[{"role": "user", "content": text}], llm=llm, migration=migration, job=job, **more)
