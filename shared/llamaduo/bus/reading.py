"""Reading a stream without a consumer: batches of what is stored, by sequence number (JetStream's direct get).

Whoever may make a consumer may also change those of others, for its settings are in the body of the request, which
the server's permissions do not see. So no service may make one, and all read like this. Nothing is kept on the
server either: a reader has its own place, and asks again from there after whatever broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from llamaduo.bus.denials import Denials

BATCH = 256
BATCH_BYTES = 4 * 1024 * 1024
"""Of one answer: more than the largest message of the bus."""
PATIENCE_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 1.0


@dataclass(frozen=True)
class Stored:
    """One message of a stream."""

    seq: int
    subject: str
    body: bytes


class WakeUps:
    """When to look at the stream again: soon after somebody published, and by the clock."""

    def __init__(self, at_least_s: float = 5.0) -> None:
        self._at_least_s = at_least_s
        self._woken = asyncio.Event()
        self._pause = LONGEST_PAUSE_S

    def wake(self) -> None:
        """Something was published: it is in the stream at once, or a moment later, or it was a repeat."""
        self._pause = FIRST_PAUSE_S
        self._woken.set()

    async def wait(self) -> None:
        """Called when nothing new was there."""
        if self._pause < LONGEST_PAUSE_S:
            await asyncio.sleep(self._pause)
            self._pause *= 2
            return
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), self._at_least_s)


class Incomplete(NatsError):
    """A part of the answer got lost on a connection that was breaking: ask again."""


class StreamReader:
    """Reads one stream of the bus, which must allow direct gets (`topology.bootstrap` sees to that)."""

    def __init__(self, client: Client, stream: str, denials: Denials) -> None:
        self._client, self._stream, self._denials = client, stream, denials

    async def last_seq(self) -> int:
        """Sequence number of the newest message. Errors of the client pass through."""
        return (await self._client.jetstream(timeout=PATIENCE_S).stream_info(self._stream)).state.last_seq

    async def read(self, start: int, subjects: Sequence[str] | None = None) -> tuple[list[Stored], int]:
        """What is stored from sequence number `start` on, in order, as much as comes at once, and where to go on.

        That is `start` again at the end of the stream. NotFoundError where there is no such stream, or none that
        can be read like this, Denied where this user may not; other errors of the client where the bus stays away.
        """
        if subjects is None:
            found, _ = await self.batch(start)
            return found, found[-1].seq + 1 if found else start
        last = await self.last_seq()
        if last < start:
            return [], start
        parts = await asyncio.gather(*(self.batch(start, subject) for subject in subjects))
        # Up to where every subject has told all it has.
        upto = min([last, *(found[-1].seq for found, more in parts if found and more)])
        merged = sorted((one for found, _ in parts for one in found if one.seq <= upto), key=lambda one: one.seq)
        return merged, upto + 1

    async def batch(self, start: int, subject: str | None = None, most: int = BATCH) -> tuple[list[Stored], bool]:
        """The next messages, on this subject if one is named, and whether there are more. Errors as `read`."""
        asked: dict[str, object] = {"seq": start, "batch": most, "max_bytes": BATCH_BYTES}
        if subject is not None:
            asked["next_by_subj"] = subject
        where = f"$JS.API.DIRECT.GET.{self._stream}"
        return await self._denials.watch(where, self._answer(where, json.dumps(asked).encode()))

    async def _answer(self, where: str, asked: bytes) -> tuple[list[Stored], bool]:
        inbox = self._client.new_inbox()
        sub = await self._client.subscribe(inbox)
        found: list[Stored] = []
        try:
            await self._client.publish(where, asked, reply=inbox)
            while True:
                message = await sub.next_msg(timeout=PATIENCE_S)
                headers = message.headers or {}
                status = headers.get("Status")
                if status == "404":
                    return [], False
                if status == "503":
                    raise NotFoundError(code=503, description=f"the stream {self._stream} cannot be read")
                if status not in (None, "204"):
                    raise NatsError(f"reading {self._stream}: {status} {headers.get('Description', '')}")
                # The server says which message it sent before this one, so a loss is seen.
                before = int(headers.get("Nats-Last-Sequence", 0))
                if before != (found[-1].seq if found else 0):
                    raise Incomplete(f"messages of {self._stream} got lost on their way")
                if status is not None:
                    return found, int(headers.get("Nats-Num-Pending", 0)) > 0
                found.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data))
        finally:
            with contextlib.suppress(NatsError):
                await sub.unsubscribe()
