"""Reading a stream from some place on, without acks and without effects, through outages of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

BATCH = 256


@dataclass
class _Reader:
    """A consumer that acks nothing, and how much of what it was sent has arrived here.

    What the server wrote to a connection that was breaking is gone, and the server does not send it again. But it
    numbers what it sends to a consumer, without gaps whatever the filter, so a loss is seen.
    """

    sub: JetStreamContext.PullSubscription
    taken: int = 0

    def takes(self, message: Msg) -> bool:
        """Whether this is the next message; False where one before it was lost."""
        self.taken += 1
        return bool(message.metadata.sequence.consumer == self.taken)

    async def pending(self) -> int | None:
        """How many messages are still to be sent. None where the consumer is gone, or what it sent got lost."""
        try:
            info = await self.sub.consumer_info()
        except (TimeoutError, NatsError):
            return None
        sent = info.delivered.consumer_seq if info.delivered is not None else 0
        return info.num_pending if sent == self.taken else None


async def _drop(reader: _Reader | None) -> None:
    """Give up a reader; the server forgets its consumer after a while."""
    if reader is not None:
        with contextlib.suppress(Exception):
            await reader.sub.unsubscribe()


async def messages(
    js: JetStreamContext, stream: str, subjects: Sequence[str] | None = None, *, patience: float = 5
) -> AsyncGenerator[Msg | None, None]:
    """All messages of a stream in order, then those that come, for ever.

    None stands where everything that was there has been taken; it may come more than once. Survives server restarts:
    it keeps its own place and asks again from there. `patience`: seconds an idle fetch takes.
    """
    following = 1
    reader: _Reader | None = None
    try:
        while True:
            try:
                if reader is None:
                    reader, waiting = await _open(js, stream, subjects, following)
                    if waiting == 0:
                        yield None
                fetched = await reader.sub.fetch(BATCH, timeout=patience)
            except TimeoutError:
                pending = await reader.pending() if reader is not None else None
                if pending == 0:
                    yield None
                elif pending is None:
                    await _drop(reader)
                    reader = None
                continue
            except NatsError:
                await _drop(reader)
                reader = None
                await asyncio.sleep(0.3)
                continue
            for message in fetched:
                if not reader.takes(message):
                    await _drop(reader)
                    reader = None
                    break
                following = message.metadata.sequence.stream + 1
                yield message
                if message.metadata.num_pending == 0:
                    yield None
    finally:
        await _drop(reader)


async def _open(js: JetStreamContext, stream: str, subjects: Sequence[str] | None, start: int) -> tuple[_Reader, int]:
    """A reader from `start` on, and how many messages there are for it now."""
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=AckPolicy.NONE,
        filter_subjects=sorted(subjects) if subjects else None,
        inactive_threshold=60,
        mem_storage=True,
    )
    info = await js.add_consumer(stream, config)
    sub = await js.pull_subscribe_bind(consumer=info.name, stream=stream)
    return _Reader(sub), info.num_pending or 0
