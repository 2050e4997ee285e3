"""The one place that settles messages: ack, nack with a delay, or dead letter and term.

A FastStream middleware round every handler. It reads the event, claims its job, reports heartbeats while the
handler runs, commits the results once, announces them, and acks last. Handlers return events and settle nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from faststream import BaseMiddleware
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from llamaduo.bus.dead_letters import bury
from llamaduo.bus.desk import Desk, Handler, Work
from llamaduo.bus.keeping import HandedBack, beat, commit
from llamaduo.bus.topology import Durable
from llamaduo.bus.trace import job_on
from llamaduo.bus.work import Exhausted, Finished, Lease, Wait, claim, excuse, excused, record_of
from llamaduo.errors import (
    BadEvent,
    BudgetExhausted,
    BusFull,
    LeaseLost,
    NotYet,
    PermanentError,
    RetryableError,
    describe,
)
from llamaduo.event_parts import CallCounts
from llamaduo.events import (
    AnyEvent,
    BudgetRefused,
    Event,
    PromoteRequested,
    RollbackRequested,
    WorkWithdrawn,
    encode_event,
    event_of,
    parse_event,
)
from llamaduo.telemetry import DEAD_LETTERS, JOB_SECONDS, JOBS, WORK_IN_HAND, log_lines_about

if TYPE_CHECKING:
    from faststream.message import StreamMessage


log = logging.getLogger(__name__)
ACK_TIMEOUT_S = 5.0
LEAVING_PAUSE_S = 0.2
"""Before others get a message that came to a service that is leaving: without it, two that leave play ping-pong."""
AFTER_THE_END = (PromoteRequested, RollbackRequested)
"""What is worked on for a migration that has ended, too."""


IN_HAND: ContextVar[tuple[Handler, AnyEvent, Work] | None] = ContextVar("in_hand", default=None)


async def run_in_hand(_body: object) -> list[Event]:
    """The FastStream handler of every subscriber: run the role's own handler on the event in hand."""
    current = IN_HAND.get()
    if current is None:
        raise RuntimeError("no message in hand: the settling middleware is missing")
    handler, event, work = current
    return list(await handler(event, work))


class Settling(BaseMiddleware):
    """One message from arrival to ack; see the module."""

    def __init__(self, msg: Any | None, /, *, context: Any, desk: Desk) -> None:
        super().__init__(msg, context=context)
        self.desk = desk

    async def consume_scope(self, call_next: Any, msg: StreamMessage[Any]) -> Any:
        raw: Msg = msg.raw_message
        meta = raw.metadata
        durable, handler = self.desk.roles[meta.consumer]
        message = Message(self.desk, durable, handler, raw)
        try:
            await message.settle(lambda: call_next(msg))
        except asyncio.CancelledError:
            raise
        except BusFull as error:
            await message.wait_for_room(error)
        except Exception:
            # Silence means "again after ack_wait": the safe answer to a mistake of our own.
            log.exception("settling a message of %s failed", durable.name)


@dataclass
class Message:
    """One delivery."""

    desk: Desk
    durable: Durable
    handler: Handler
    raw: Msg

    async def settle(self, run: Callable[[], Awaitable[list[Event]]]) -> None:
        """From bytes to ack, nack or dead letter."""
        try:
            event = event_of(self.raw.subject, self.raw.data)
        except BadEvent as error:
            log.warning("%s: a message on %s: %s", self.durable.name, self.raw.subject, describe(error))
            await self._dead_letter(None, str(error), 1)
            return
        with log_lines_about(migration=event.migration, event=event.id), job_on(event, self.raw.headers):
            await self._settle_event(event, run)

    async def _settle_event(self, event: AnyEvent, run: Callable[[], Awaitable[list[Event]]]) -> None:
        desk = self.desk
        if desk.stopping:
            await self._put_off(event, LEAVING_PAUSE_S)
            return
        if self._pointless(event):
            await self._leave_off(event)
            return
        if self._halted(event):
            await self._nack(min(5.0, desk.timing.retry_most))
            return
        if self.durable.leased:
            await self._leased(event, run)
        else:
            await self._unleased(event, run)

    async def wait_for_room(self, error: BusFull) -> None:
        """Have it sent again after a pause that grows: nothing could be written down, and no try is counted."""
        log.warning("%s waits: %s", self.durable.name, error)
        await self._nack(self._delay(self.raw.metadata.num_delivered))

    def _halted(self, event: AnyEvent) -> bool:
        """Whether an operator has paused the migration, and this is work of it."""
        view = self.desk.mirror.get(event.migration)
        return self.durable.leased and not isinstance(event, AFTER_THE_END) and view is not None and view.paused

    def _pointless(self, event: AnyEvent) -> bool:
        """Whether the migration has ended, or is about to: that a cancel does end it is for the unleased to say."""
        if isinstance(event, AFTER_THE_END):
            return False
        view = self.desk.mirror.get(event.migration)
        cancelled = self.durable.leased and view is not None and view.cancel is not None
        return cancelled or self.desk.mirror.has_ended(event.migration)

    async def _leave_off(self, event: AnyEvent) -> None:
        """Ack work that nobody waits for, once what came of it, or was bought for it, has been told."""
        if self.durable.leased:
            record = await record_of(await self.desk.bus.bucket("work"), self._key(event))
            await self._announce_again(record.results)
            in_hand = record.state == "running" and record.until > time.time()  # by who will tell of more
            if not record.results and record.bought.made and not in_hand:
                await self.desk.bus.publish(self._withdrawn(event, record.bought))
        await self._ack()

    async def _announce_again(self, results: Sequence[str]) -> None:
        for body in results:
            await self.desk.bus.publish(parse_event(body.encode()))

    def _withdrawn(self, event: AnyEvent, calls: CallCounts) -> WorkWithdrawn:
        return WorkWithdrawn(
            migration=event.migration,
            consumer=self.durable.name,
            job=event.id,
            calls=calls,
            source=f"{self.desk.service}/{self.desk.replica}",
        )

    async def _leased(self, event: AnyEvent, run: Callable[[], Awaitable[list[Event]]]) -> None:
        desk, timing = self.desk, self.desk.timing
        bucket = await desk.bus.bucket("work")
        claimed = await claim(
            bucket,
            self._key(event),
            owner=desk.replica,
            now=time.time(),
            seconds=timing.lease,
            attempts=self.durable.attempts,
        )
        if isinstance(claimed, Finished):
            await self._announce_again(claimed.results)
            await self._ack()
        elif isinstance(claimed, Wait):
            await self._nack(max(0.1, claimed.seconds))
        elif isinstance(claimed, Exhausted):
            await self._dead_letter(event, "begun this often and never finished (killed each time?)", claimed.starts)
        else:
            await self._run_leased(event, run, claimed)

    async def _run_leased(self, event: AnyEvent, run: Callable[[], Awaitable[list[Event]]], lease: Lease) -> None:
        try:
            results = await self._run(event, run, lease)
            encoded = [encode_event(result).decode() for result in results]
            await commit(self.raw, lease, encoded, self.desk.timing, self.desk.bus.room, lambda: self.desk.stopping)
        except LeaseLost:
            log.warning("%s: another process owns %s now, leaving it", self.durable.name, event.id[:12])
            return
        except (HandedBack, asyncio.CancelledError) as error:
            with contextlib.suppress(LeaseLost, NatsError, TimeoutError, BusFull):
                await lease.release(counted=False)
            await self._nack(0)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        except NotYet as error:
            await lease.release(counted=False)
            await self._nack(error.delay)
            return
        except PermanentError as error:
            await self._give_up(event, lease, error, lease.attempt)
            return
        except Exception as error:
            await self._again(event, lease, error)
            return
        for result in results:
            await self.desk.bus.publish(result)
        await self._ack()

    async def _unleased(self, event: AnyEvent, run: Callable[[], Awaitable[list[Event]]]) -> None:
        try:
            for result in await self._run(event, run, None):
                await self.desk.bus.publish(result)
        except (HandedBack, asyncio.CancelledError) as error:
            await self._put_off(event, 0)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        except NotYet as error:
            await self._put_off(event, error.delay)
            return
        except Exception as error:
            bucket = await self.desk.bus.bucket("work")
            tries = max(1, self.raw.metadata.num_delivered - await excused(bucket, self._key(event)))
            if isinstance(error, PermanentError) or tries >= self.durable.attempts:
                log.exception("%s gives up on %s", self.durable.name, event.type)
                await self._dead_letter(event, describe(error), tries, getattr(error, "calls", None))
            else:
                log.warning("%s: %s: %s, trying again", self.durable.name, event.type, describe(error))
                await self._nack(self._delay(tries))
            return
        await self.raw.ack()  # unconfirmed: one that is lost costs another look, and a confirmed one a round trip

    async def _run(
        self, event: AnyEvent, run: Callable[[], Awaitable[list[Event]]], lease: Lease | None
    ) -> list[Event]:
        """Run the handler in a task of its own while heartbeats go out; refuses what is not in the contract."""
        desk = self.desk
        work = Work(
            bus=desk.bus,
            mirror=desk.mirror,
            service=desk.service,
            replica=desk.replica,
            role=self.durable.name,
            job=event.id,
            attempt=lease.attempt if lease else self.raw.metadata.num_delivered,
            seq=self.raw.metadata.sequence.stream,
        )
        token = IN_HAND.set((self.handler, event, work))
        handling = asyncio.ensure_future(run())
        IN_HAND.reset(token)
        beating = asyncio.create_task(beat(self.raw, lease, desk.timing, desk.bus.room))
        stoppable = self.durable.leased and not isinstance(event, AFTER_THE_END)
        desk.running[handling] = event.migration if stoppable else None
        if desk.stopping:  # it began to leave, or the migration ended, while the job was claimed
            handling.cancel()
        elif self._pointless(event):
            desk.withdraw(event.migration)
        elif self._halted(event):
            handling.cancel()
        began = time.monotonic()
        WORK_IN_HAND.labels(self.durable.name).inc()
        outcome, results = "error", list[Event]()
        try:
            await asyncio.wait({handling, beating}, return_when=asyncio.FIRST_COMPLETED)
            if not handling.done():
                handling.cancel()
                await asyncio.wait({handling}, timeout=20)
                beating.result()
                raise LeaseLost(event.id)
            if handling.cancelled():
                if handling not in desk.withdrawn:
                    outcome = "handed_back"
                    raise HandedBack(event.id)
                outcome = "withdrawn"
                # Nobody waits for a result any more. What was bought for it is told of all the same.
                if lease is not None:
                    lease.note_bought(desk.bought_by(event.id))
                    results = [self._withdrawn(event, lease.bought)] if lease.bought.made else []
            else:
                results = list(handling.result())
                outcome = "done"
        except BudgetExhausted as error:
            outcome = "budget"
            refused = {"what": error.what, "limit": error.limit, "spent": error.spent}
            paid = error.calls or CallCounts()
            results = [BudgetRefused(migration=event.migration, job=event.id, calls=paid, **refused)]
        except asyncio.CancelledError:
            outcome = "handed_back"
            handling.cancel()
            await asyncio.wait({handling}, timeout=18)
            raise
        finally:
            beating.cancel()
            desk.running.pop(handling, None)
            desk.withdrawn.discard(handling)
            bought = desk.bought_by(event.id)
            if lease is not None:
                lease.note_bought(bought)
            WORK_IN_HAND.labels(self.durable.name).dec()
            JOBS.labels(self.durable.name, outcome).inc()
            seconds = time.monotonic() - began
            JOB_SECONDS.labels(self.durable.name).observe(seconds)
            if desk.tracing is not None:
                desk.tracing.job(
                    event, work.role, attempt=work.attempt, outcome=outcome, seconds=seconds, results=results,
                    view=desk.mirror.get(event.migration),
                )  # fmt: skip
        source = f"{desk.service}/{desk.replica}"
        for result in results:
            if type(result) not in desk.contract.publishes:
                raise PermanentError(f"{desk.service} may not publish {result.type}")
        stamp = {"source": source, "at": datetime.now(UTC)}
        return [result.model_copy(update=stamp) for result in results]

    async def _again(self, event: AnyEvent, lease: Lease, error: Exception) -> None:
        tries = lease.attempt
        if tries >= self.durable.attempts:
            await self._give_up(event, lease, error, tries)
            return
        log.warning(
            "%s: %s failed (try %d of %d): %s",
            self.durable.name, event.type, tries, self.durable.attempts, describe(error),
            exc_info=not isinstance(error, RetryableError),
        )  # fmt: skip
        await lease.release(counted=True)
        delay = error.delay if isinstance(error, RetryableError) else 0.0
        await self._nack(min(max(delay, self._delay(tries)), self.desk.timing.retry_most))

    async def _give_up(self, event: AnyEvent, lease: Lease, error: Exception, tries: int) -> None:
        log.error("%s gives up on %s: %s", self.durable.name, event.type, describe(error))
        await self._dead_letter(event, describe(error), tries, getattr(error, "calls", None))
        with contextlib.suppress(LeaseLost):
            await lease.release(counted=True)

    def _delay(self, tries: int) -> float:
        timing = self.desk.timing
        return float(min(timing.retry_most, timing.retry_first * 2 ** min(tries - 1, 30)))

    async def _ack(self) -> None:
        try:
            await self.raw.ack_sync(timeout=ACK_TIMEOUT_S)
        except Exception as error:
            log.warning("an ack was not confirmed (%s): the message comes again and is found done", error)

    async def _put_off(self, event: AnyEvent, delay: float) -> None:
        """Send it back without a fault of its own, which the broker's count of deliveries cannot tell."""
        if not self.durable.leased:
            with contextlib.suppress(RetryableError, NatsError, TimeoutError):
                await excuse(await self.desk.bus.bucket("work"), self._key(event))
        await self._nack(delay)

    def _key(self, event: AnyEvent) -> str:
        """Of the job's record."""
        return f"{self.durable.name}.{event.id}"

    async def _nack(self, delay: float) -> None:
        with contextlib.suppress(Exception):
            await self.raw.nak(delay=delay if delay > 0 else None)

    async def _dead_letter(
        self, event: AnyEvent | None, reason: str, tries: int, calls: CallCounts | None = None
    ) -> None:
        desk = self.desk
        await bury(
            desk.bus,
            self.raw,
            event,
            reason=reason,
            tries=tries,
            source=f"{desk.service}/{desk.replica}",
            calls=calls,
        )
        await self.raw.term()
        DEAD_LETTERS.labels(self.durable.name).inc()
