"""The one way to call the service LLM: ledger, rate limits, circuit breaker, budget, retries.

One call goes: is it in the ledger? wait for a slot; hold its largest price; write it down as intended; send; write
the answer down; settle. Whatever is cut off in between is taken up where the ledger shows it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from llamaduo.bus.kv import KeyValue
from llamaduo.errors import (
    BudgetExhausted,
    LlamaDuoError,
    ProviderDown,
    RetryableError,
    ServiceLLMRefused,
)
from llamaduo.event_parts import CallCounts
from llamaduo.identity import seed_of
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import metrics, prices
from llamaduo.service_llm.answers import answer_of
from llamaduo.service_llm.batches import Batches, Tell
from llamaduo.service_llm.books import Books
from llamaduo.service_llm.budget import Amount, BudgetHeld, Door
from llamaduo.service_llm.call import Answer, Call
from llamaduo.service_llm.clock import Clock, SystemClock
from llamaduo.service_llm.ledger import Attempt, Ledger, LedgerEntry
from llamaduo.service_llm.openai_batches import OpenAIBatches
from llamaduo.service_llm.pace import Slot
from llamaduo.service_llm.permits import Permits, rate_key
from llamaduo.service_llm.providers import ProviderSender
from llamaduo.service_llm.sending import Send, SendFailed
from llamaduo.service_llm.sending_batches import SendBatches
from llamaduo.service_llm.tally import Tally
from llamaduo.settings import ServiceSettings

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus

MAX_TRIES = 6
LONGEST_WAIT_S = 120.0
"""A provider that asks for more patience than this gets the whole job put off."""

LEAVING_S, CLOSING_S = 12.0, 4.0
"""How long a caller that is cancelled waits for its request on the way, and `close` for what is left; together less
than the 20 s in which a service leaves."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.1, 2.0


@dataclass
class _Flight:
    """A call this process has in hand; equal calls wait for the same one. `paying`: must not be cut off."""

    task: asyncio.Task[LedgerEntry]
    migration: str
    waiters: int = 0
    paying: bool = False
    sent: bool = False


class _Dropped(Exception):
    """The flight that was joined had just been given up by those who waited for it."""


class ServiceLLMClient:
    """Asks service LLMs for the work of one process.

    `ledger`, `budget` and `permits` are buckets shared by all replicas of all services; `send` does one request and
    nothing else, `send_batches` many; `replica` names this process in the ledger, and no two living ones share it.
    `ended` says whether a migration is over, `tell` is told how far a batch is.
    """

    def __init__(
        self,
        *,
        ledger: KeyValue,
        budget: KeyValue,
        permits: KeyValue,
        replica: str,
        send: Send | None = None,
        send_batches: SendBatches | None = None,
        ended: Callable[[str], bool] = lambda _migration: False,
        tell: Tell | None = None,
        clock: Clock | None = None,
        max_tries: int = MAX_TRIES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._ledger = Ledger(ledger, self._clock)
        self._door = Door(budget, self._clock)
        self._tally = Tally()
        self._books = Books(self._ledger, self._door, self._clock, self._tally)
        self._permits = Permits(permits, self._clock)
        self._send = send or ProviderSender()
        self._replica, self._owner, self._max_tries = replica, uuid4().hex, max_tries
        self._batches = Batches(
            ledger,
            Books(Ledger(ledger, self._clock), self._door, self._clock, self._tally),
            send_batches or OpenAIBatches(),
            self._clock,
            replica,
            ended=ended,
            tell=tell,
        )
        self._flights: dict[str, _Flight] = {}
        self._rooms: dict[tuple[str, int], asyncio.Semaphore] = {}
        self._closed = False

    @classmethod
    async def on_bus(
        cls, bus: Bus, ended: Callable[[str], bool] = lambda _migration: False, tell: Tell | None = None
    ) -> ServiceLLMClient:
        """A client over the bus's buckets, in the name of its connection and process."""
        process = bus.settings.replica if isinstance(bus.settings, ServiceSettings) else uuid4().hex
        return cls(
            ledger=await bus.bucket("ledger"),
            budget=await bus.bucket("budget"),
            permits=await bus.bucket("permits"),
            replica=f"{bus.name}/{process}",
            ended=ended,
            tell=tell,
        )

    async def ask(self, call: Call, budgets: Budgets) -> Answer:
        """The answer to a call, from the ledger or bought.

        BudgetExhausted: refused at the door, nothing was sent. ServiceLLMRefused: the provider will never answer
        this. RetryableError: not now. When the caller is cancelled, a request already on its way is awaited for
        LEAVING_S and written down before the cancellation goes on: whoever takes the job over must find the answer.
        """
        self._tally.open(call.job)
        while True:
            flight = self._flights.get(call.key)
            started = flight is None
            flight = flight or self._start(call, budgets)
            try:
                entry = await self._join(flight)
            except _Dropped:
                pass
            except BudgetExhausted:
                if started or flight.migration == call.migration:
                    raise
            else:
                self._tally.note(call, entry)
                return answer_of(call, entry, from_ledger=not (started and flight.sent))
            # A flight that has ended leaves the list in the event loop's next turn, and joining it waits for nothing.
            await asyncio.sleep(0)

    async def ask_all(self, calls: Sequence[Call], budgets: Budgets) -> list[Answer | LlamaDuoError]:
        """Ask many calls, as many at once as the spec allows; one result a call, in order.

        One call that is refused or fails does not stop the others. Once a budget is exhausted nothing more is sent:
        the calls that were left have that error, those answered keep their answers. Calls whose service LLM is asked
        in batches are first sent as one; what it does not bring is asked online.
        """
        for call in calls:
            self._tally.open(call.job)
        try:
            await self._batches.buy([call for call in calls if call.llm.batch is not None], budgets)
        except LlamaDuoError as error:
            return [await self._known_or(error, call, budgets) for call in calls]
        results: dict[int, Answer | LlamaDuoError] = {}
        queue = iter(enumerate(calls))
        exhausted: BudgetExhausted | None = None

        async def work() -> None:
            nonlocal exhausted
            for number, call in queue:
                if exhausted is not None:
                    results[number] = exhausted
                    continue
                try:
                    results[number] = await self.ask(call, budgets)
                except LlamaDuoError as error:
                    results[number] = error
                    if isinstance(error, BudgetExhausted):
                        exhausted = error

        workers = min(len(calls), max((call.llm.concurrency for call in calls), default=0))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [results[number] for number in range(len(calls))]

    def bought_by(self, job: str) -> CallCounts:
        """What a job that is in hand here no more has bought. Asked for once: the counts are forgotten with it."""
        return self._tally.take(job)

    async def cancel_left_batches(self) -> None:
        """Cancel batches of migrations that ended while nobody had their work in hand."""
        await self._batches.cancel_left()

    async def _known_or(self, error: LlamaDuoError, call: Call, budgets: Budgets) -> Answer | LlamaDuoError:
        """The answer where the ledger has it, else this error."""
        if (await self._ledger.entry(call.key)).answer is None:
            self._ledger.forget(call.key)
            return error
        try:
            return await self.ask(call, budgets)
        except LlamaDuoError as refused:
            return refused

    async def close(self, grace_s: float = CLOSING_S) -> None:
        """Take no more calls; wait so long for requests on their way and write their answers down; drop the rest."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for flight in self._flights.values():
            if not flight.paying:
                flight.task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._send.close()
        await self._batches.close()

    def _start(self, call: Call, budgets: Budgets) -> _Flight:
        if self._closed:
            raise RetryableError("this process is leaving")
        flight: _Flight

        async def fly() -> LedgerEntry:
            return await self._buy(call, budgets, flight)

        flight = _Flight(asyncio.create_task(fly(), name=f"service-llm {call.key[:20]}"), call.migration)
        self._flights[call.key] = flight
        flight.task.add_done_callback(lambda task: self._landed(call.key, task))
        return flight

    def _landed(self, key: str, task: asyncio.Task[LedgerEntry]) -> None:
        del self._flights[key]
        self._ledger.forget(key)
        if not task.cancelled():
            task.exception()

    async def _join(self, flight: _Flight) -> LedgerEntry:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.task.cancelled() and not _being_cancelled():
                raise _Dropped from None
            raise
        finally:
            flight.waiters -= 1
            if flight.paying:  # this caller was cancelled
                await asyncio.wait({flight.task}, timeout=LEAVING_S)
            elif not flight.waiters:
                flight.task.cancel()

    async def _buy(self, call: Call, budgets: Budgets, flight: _Flight) -> LedgerEntry:
        failures, look, patience = 0, _FIRST_LOOK_S, 0.0
        most = prices.largest(call)
        while True:
            entry = await self._ledger.entry(call.key)
            if entry.answer is not None:
                await self._books.settle_after_kill(call, budgets, entry)
                return entry
            if entry.rival(call.job, self._owner, self._replica, self._clock.now()) is not None:
                await self._clock.sleep(look)
                look = min(2 * look, _LONGEST_LOOK_S)
                continue
            try:
                async with self._room(call.llm):
                    with metrics.waiting(call.llm):
                        slot = await self._permits.take(call.llm, most.tokens)
                    outcome = await self._attempt(call, budgets, flight, entry, most, slot)
            except BudgetHeld as held:
                # A hold that no live call has any more would be waited for in vain.
                patience = patience or self._clock.now() + call.llm.timeout_s + call.llm.batch_wait_s
                if self._clock.now() >= patience:
                    raise held.refusal from None
                await self._clock.sleep(look)
                look = min(2 * look, _LONGEST_LOOK_S)
                continue
            if isinstance(outcome, LedgerEntry):
                return outcome
            if isinstance(outcome, SendFailed):
                failures += 1
                await self._wait_after(outcome, failures, call)

    async def _attempt(
        self, call: Call, budgets: Budgets, flight: _Flight, entry: LedgerEntry, most: Amount, slot: Slot
    ) -> LedgerEntry | SendFailed | None:
        """One send: the entry with its answer, why there is none, or None where nothing was sent after all."""
        if not flight.waiters:
            # Its cancellation was swallowed on the way here, as Python 3.11's `wait_for` may do (CPython #81839).
            await self._permits.unused(call.llm, slot)
            raise asyncio.CancelledError
        flight.paying = True
        try:
            attempt, slot = await self._intend(call, budgets, entry, most, slot)
            if attempt is None:
                return None
            flight.sent = True
            began = self._clock.now()
            try:
                reply = await self._send(call, call.key)
            except SendFailed as failure:
                await self._books.no_answer(call, budgets, attempt.id, failure)
                if failure.kind in ("failed", "unknown"):
                    await self._permits.failed(call.llm, slot, failure.retry_after)
                else:
                    await self._permits.answered(call.llm, slot, None)
                return failure
            except LlamaDuoError as error:
                await self._books.no_answer(call, budgets, attempt.id, SendFailed("refused", str(error)))
                await self._permits.unused(call.llm, slot)
                raise
            except Exception as error:
                await self._books.no_answer(call, budgets, attempt.id, SendFailed("unknown", repr(error)))
                raise
            try:
                return await self._books.keep(call, budgets, attempt.id, reply, began)
            finally:
                await self._permits.answered(call.llm, slot, reply.input_tokens + reply.output_tokens)
        finally:
            flight.paying = False
            if not flight.waiters:
                flight.task.cancel()

    async def _intend(
        self, call: Call, budgets: Budgets, entry: LedgerEntry, most: Amount, slot: Slot
    ) -> tuple[Attempt | None, Slot]:
        """Hold the largest price and write the attempt down: None where the ledger has moved on meanwhile. The slot
        is a new one if that took too long."""
        attempt_id = entry.next_id(call)
        try:
            await self._door.hold(call.migration, budgets, attempt_id, most)
            attempt = await self._ledger.begin(call, attempt_id, self._owner, self._replica)
            if attempt is None and (await self._ledger.entry(call.key)).attempt(attempt_id) is None:
                await self._door.settle(call.migration, budgets, [attempt_id], Amount())
        except (LlamaDuoError, BudgetHeld):
            await self._permits.unused(call.llm, slot)
            raise
        if attempt is not None and self._permits.fresh(slot):
            return attempt, slot
        await self._permits.unused(call.llm, slot)
        if attempt is None:
            return None, slot
        try:
            return attempt, await self._permits.take(call.llm, most.tokens)
        except RetryableError as error:
            await self._books.no_answer(call, budgets, attempt.id, SendFailed("failed", f"not sent: {error}"))
            raise

    async def _wait_after(self, failure: SendFailed, failures: int, call: Call) -> None:
        """Wait before the next try; raises instead where there is none."""
        if failure.kind == "refused":
            raise ServiceLLMRefused(f"{call.llm.model}: {failure}")
        backoff = min(_FIRST_BACKOFF_S * 2 ** (failures - 1), _LONGEST_BACKOFF_S)
        jitter = seed_of(call.key, failures) / 2**31
        wait = backoff * (0.5 + jitter) if failure.retry_after is None else failure.retry_after + 0.1 * jitter
        if failures >= self._max_tries or wait > LONGEST_WAIT_S:
            put_off = ProviderDown if self._permits.down(call.llm) else RetryableError
            raise put_off(f"{call.llm.model}: tried {failures} times, last: {failure}", delay=wait)
        if failure.kind == "limited":
            await self._permits.hold(call.llm, wait)
        await self._clock.sleep(wait)

    def _room(self, llm: ServiceLLM) -> asyncio.Semaphore:
        return self._rooms.setdefault((rate_key(llm), llm.concurrency), asyncio.Semaphore(llm.concurrency))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
