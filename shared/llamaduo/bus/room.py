"""A bus without room: how it is known, what to do about it, and waiting until it takes things again.

The log may have reached its limit, the server its own, or the disk its end. The last breaks a stream for good: the
server answers questions, and nothing at all to what is to be stored there, until it is started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.js.errors import APIError

from llamaduo.errors import BusFull, RetryableError

T = TypeVar("T")
log = logging.getLogger(__name__)

TRIES = 20
"""Of a write to a bus that is away, before the work behind it is put off."""
LONGEST_PAUSE_S, LONGEST_PAUSE_WHEN_FULL_S = 5.0, 30.0
SILENT_S = 1.0
"""Between two time-outs of writes to one place, with none taken meanwhile, before the disk is thought of."""
STORE_FAILED, SERVER_FULL, GENERAL = 10077, (10002, 10023, 10047), 10051
NOT_TAKEN = (10060, 10122)
RAISE_IT = "raise its limit: `llamaduo bootstrap --max-bytes N` (-1: none)"
FREE_IT = "make room on the disk of its nats-server, then start that anew (`llamaduo up` does it by itself)"


def why_full(error: BaseException) -> str | None:
    """What is full, and what to do; None where an error is about something else."""
    if not isinstance(error, APIError):
        return None
    said = error.description or ""
    if error.err_code == STORE_FAILED and said.startswith("maximum"):
        return f"the log is full ({said}): {RAISE_IT}"
    if error.err_code in (STORE_FAILED, GENERAL, *SERVER_FULL):
        return f"the bus is full ({said}): {FREE_IT}"
    return None


STORES_NOTHING = f"the bus answers but stores nothing, its disk is or was full: {FREE_IT}"


class Room:
    """What a bus says of its room, shared by all that write to it.

    `patient` where there is nobody to be told: then a write waits for as long as the bus is full, with growing
    pauses. `answers` tells whether the bus answers a question just now.
    """

    def __init__(self, answers: Callable[[], Awaitable[bool]], *, patient: bool) -> None:
        self._answers, self._patient = answers, patient
        self._leaving = asyncio.Event()
        self._full: dict[str, str] = {}
        self._silent_since: dict[str, float] = {}

    @property
    def full(self) -> str | None:
        """What is full and what to do, as of the last writes; None where all were taken."""
        return next(iter(self._full.values()), None)

    def leave(self) -> None:
        """Wait for nothing more."""
        self._leaving.set()

    def took(self, where: str) -> None:
        """A write to this stream or bucket was taken."""
        self._full.pop(where, None)
        self._silent_since.pop(where, None)

    async def why_not(self, where: str, error: Exception) -> str | None:
        """What is full, from the error of a write to this stream or bucket; None where it is about something else.

        A time-out does not tell whether the write was taken. Where they go on and the server answers, it is its disk;
        several at once can be this process, which was busy and read no replies.
        """
        full = why_full(error)
        if full is None and isinstance(error, TimeoutError):
            now = time.monotonic()
            since = self._silent_since.setdefault(where, now)
            if now - since >= SILENT_S and await self._answers():
                full = STORES_NOTHING
        if full is not None:
            if where not in self._full:
                log.error("%s: %s", where, full)
            self._full[where] = full
        return full

    async def stored(self, where: str, what: str, write: Callable[[], Awaitable[T]]) -> T:
        """Write to a stream or bucket until it is taken.

        BusFull where the bus is full and this may not wait, RetryableError where it stays away. What `write` raises
        beside errors of the client passes through.
        """
        attempt = 0
        while True:
            try:
                result = await write()
            except (OSError, NatsError) as error:  # a TimeoutError is an OSError
                await self._failed(where, what, error, attempt)
            else:
                self.took(where)
                return result
            attempt += 1

    async def _failed(self, where: str, what: str, error: Exception, attempt: int) -> None:
        """Pause, or raise what is to be raised."""
        if isinstance(error, APIError) and error.err_code in NOT_TAKEN:
            raise RetryableError(f"the bus refuses {what}: {error.description}", delay=30) from error
        full = await self.why_not(where, error)
        if full is not None:
            if not self._patient or self._leaving.is_set():
                raise BusFull(full) from error
        elif attempt + 1 >= TRIES or self._leaving.is_set():
            raise RetryableError(f"the bus did not take {what} in {attempt + 1} tries", delay=10) from error
        else:
            log.warning("publishing %s failed (%s), trying again", what, type(error).__name__)
        longest = LONGEST_PAUSE_S if full is None else LONGEST_PAUSE_WHEN_FULL_S
        pause = min(longest, 0.2 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1)  # noqa: S311
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), pause)
