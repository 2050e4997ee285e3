"""Keeping a job: heartbeats while it is worked on, and a commit that outlasts an outage of the bus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from llamaduo.bus.room import Room
from llamaduo.bus.topology import Timing
from llamaduo.bus.work import Lease
from llamaduo.errors import BusFull, LeaseLost, PermanentError, describe

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 5.0
"""Between two tries to commit to a bus that is full."""


class HandedBack(Exception):
    """The service is leaving: its job was stopped and goes back to the others."""


async def beat(message: Msg, lease: Lease | None, timing: Timing, room: Room) -> None:
    """Heartbeat until cancelled. Ends with LeaseLost when the lease is another's or ran out unrefreshed.

    While the bus is full it does not run out: nobody else can take the job either, and whoever is first when there is
    room has it.
    """
    good_until = time.monotonic() + timing.lease
    while True:
        await asyncio.sleep(timing.heartbeat)
        try:
            async with asyncio.timeout(max(1.0, timing.heartbeat)):
                await message.in_progress()
                if lease is not None:
                    await lease.refresh(time.time())
            good_until = time.monotonic() + timing.lease
        except LeaseLost:
            raise
        except BusFull:
            good_until = time.monotonic() + timing.lease
        except Exception as error:
            if isinstance(error, TimeoutError) and await room.why_not("work", error) is not None:
                good_until = time.monotonic() + timing.lease
            if lease is not None and time.monotonic() > good_until:
                raise LeaseLost("the lease ran out while the bus was away") from error


async def commit(
    message: Msg, lease: Lease, results: Sequence[str], timing: Timing, room: Room, leaving: Callable[[], bool]
) -> None:
    """Write down what came of a job, for as long as the bus is away: the work may have taken hours.

    It is over only once another has taken the job (LeaseLost) or this service leaves (HandedBack). PermanentError
    where the results are larger than a message of the bus.
    """
    beating = asyncio.create_task(beat(message, None, timing, room))
    pause = first = min(1.0, timing.heartbeat)
    try:
        while True:
            try:
                return await lease.commit(list(results))
            except MaxPayloadError as error:
                size = sum(len(result) for result in results)
                raise PermanentError(f"the results, {size} bytes, are more than the bus takes at once") from error
            except (NatsError, TimeoutError, BusFull) as error:
                if leaving():
                    raise HandedBack("finished, but the bus is away") from error
                log.warning("a finished job could not be committed yet: %s", describe(error))
                pause = min(2 * pause, LONGEST_PAUSE_S) if isinstance(error, BusFull) else first
            await asyncio.sleep(pause)
    finally:
        beating.cancel()
