"""One connection to the bus: publish once, replay the log, buckets, artifacts, progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from faststream import AckPolicy
from faststream.nats import NatsBroker
from faststream.security import SASLPlaintext
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from llamaduo.artifacts import ArtifactStore, JetStreamArtifacts, ObjectStoreArtifacts
from llamaduo.bus import topology
from llamaduo.bus.kv import KeyValue, NatsKeyValue
from llamaduo.bus.progress import Progress
from llamaduo.bus.reading import messages
from llamaduo.bus.room import Room
from llamaduo.bus.trace import traceparent
from llamaduo.errors import BadEvent, LlamaDuoError, PermanentError, RetryableError
from llamaduo.events import AnyEvent, Event, encode_event, parse_event, subject_of
from llamaduo.settings import BusSettings

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 5.0
ANSWER_TRIES = 20


@dataclass(frozen=True)
class Logged:
    """An event with its sequence number in the log."""

    event: AnyEvent
    seq: int


def headers_of(event: Event) -> dict[str, str]:
    """CloudEvents attributes, the broker's deduplication id and the trace, as message headers."""
    return {
        "Nats-Msg-Id": event.id,
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": event.type,
        "ce-source": f"/llamaduo/{event.source or 'unknown'}",
        "ce-time": event.at.isoformat(),
        "content-type": "application/json",
        "llamaduo-migration": event.migration,
        "traceparent": traceparent(event.migration),
    }


def inbox_prefix_of(name: str) -> str:
    """Where replies to this client go; one prefix a service, so that users can be kept from each other's."""
    return f"_INBOX_{name}".replace(".", "_")


@contextlib.contextmanager
def _bus_is_there() -> Iterator[None]:
    """Turns the client's errors into RetryableError, but for what is not there and will not come by itself."""
    try:
        yield
    except NotFoundError:
        raise
    except (TimeoutError, NatsError) as error:
        raise RetryableError(f"the bus does not answer: {type(error).__name__}", delay=5) from error


class Bus:
    """A connected client; made by `Bus.connect`."""

    def __init__(
        self, broker: NatsBroker, client: Client, settings: BusSettings, name: str, *, patient: bool = False
    ) -> None:
        self.broker, self.client, self.settings, self.name = broker, client, settings, name
        self.js: JetStreamContext = client.jetstream(timeout=PUBLISH_TIMEOUT_S)
        self.room = Room(self._answers, patient=patient)
        self._reconnects, self._steady_since = 0, 0.0
        self.inbox_prefix = inbox_prefix_of(name)
        self._buckets: dict[str, KeyValue] = {}
        self._artifacts: ArtifactStore | None = None

    @classmethod
    async def connect(
        cls,
        settings: BusSettings,
        name: str,
        *,
        middlewares: Sequence[Any] = (),
        wait: bool = True,
        patient: bool = False,
    ) -> Bus:
        """Connect; with `wait` for as long as it takes, else one short try. OSError-like errors pass through.

        `patient`: what is written waits while the bus is full, instead of raising BusFull.
        """
        options: dict[str, Any] = {}
        if settings.nats_user and settings.nats_password:
            options["security"] = SASLPlaintext(
                username=settings.nats_user, password=settings.nats_password.get_secret_value()
            )

        async def on_error(error: Exception) -> None:
            log.warning("bus: %s", error or type(error).__name__)

        broker = NatsBroker(
            [url.strip() for url in settings.nats_url.split(",")],
            name=name,
            ack_policy=AckPolicy.MANUAL,
            apply_types=False,
            middlewares=middlewares,
            graceful_timeout=15,
            max_reconnect_attempts=-1 if wait else 1,
            reconnect_time_wait=1,
            connect_timeout=2,
            ping_interval=20,
            inbox_prefix=inbox_prefix_of(name),
            error_cb=on_error,
            logger=None,
            **options,
        )
        await broker.connect()
        return cls(broker, broker.connection, settings, name, patient=patient)

    @property
    def lost(self) -> str | None:
        """Why this connection will never work again, in words; None while it does or tries to."""
        if self.client.is_closed:
            return f"the bus closed the connection: {self.client.last_error or 'no reason given'}"
        # FastStream's error callback raises on a refusal (wrong password, too many connections), inside the very
        # task that reconnects: it dies, and nothing tries again.
        reconnecting = self.client._reconnection_task
        if reconnecting is not None and reconnecting.done() and not self.client.is_connected:
            return f"the bus refuses this service: {self.client.last_error or 'no reason given'}"
        return None

    async def close(self) -> None:
        """Leave; nothing is published after this."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.broker.stop(), timeout=10)

    async def publish(self, event: Event) -> bool:
        """Publish once: retried under the same id until the log has it. False if it was there before.

        RetryableError when the bus stays away, BusFull when it is full and this client is not patient, PermanentError
        where the event is too large for it.
        """
        subject, body, headers = subject_of(type(event)), encode_event(event), headers_of(event)
        return await self._publish(subject, body, topology.EVENTS, headers)

    async def publish_dead_letter(self, subject: str, body: bytes, headers: dict[str, str]) -> bool:
        """Store a dead letter under the id in its headers."""
        return await self._publish(topology.DEAD_LETTER_PREFIX + subject, body, topology.DEAD_LETTERS, headers)

    async def republish(self, subject: str, body: bytes, headers: dict[str, str]) -> bool:
        """Put a dead letter's body back on its own subject."""
        return await self._publish(subject, body, topology.EVENTS, headers)

    async def _publish(self, subject: str, body: bytes, stream: str, headers: dict[str, str]) -> bool:
        async def send() -> bool:
            try:
                ack = await self.js.publish(subject, body, timeout=PUBLISH_TIMEOUT_S, stream=stream, headers=headers)
            except MaxPayloadError as error:
                raise PermanentError(f"{subject}: {len(body)} bytes are more than the bus takes at once") from error
            return not ack.duplicate

        return await self.room.stored(stream, subject, send)

    async def _answers(self) -> bool:
        """Whether the server answers, and so it did while a write of just now was waited for."""
        if self.client.stats["reconnects"] != self._reconnects:
            self._reconnects, self._steady_since = self.client.stats["reconnects"], time.monotonic()
        if time.monotonic() - self._steady_since < PUBLISH_TIMEOUT_S + 1:
            return False
        with contextlib.suppress(TimeoutError, NatsError):
            await self.js.stream_info(topology.EVENTS)
            return True
        return False

    async def bucket(self, name: topology.Bucket) -> KeyValue:
        """One of the key-value buckets of the topology.

        NotFoundError where bootstrap has not made it yet, RetryableError when the bus stays away.
        """
        if name not in self._buckets:
            with _bus_is_there():
                self._buckets[name] = NatsKeyValue(await self.js.key_value(name), name, self.room)
        return self._buckets[name]

    async def artifacts(self) -> ArtifactStore:
        """The artifact store of the settings; errors as with `bucket`."""
        if self._artifacts is None:
            if self.settings.artifacts_url:
                self._artifacts = ObjectStoreArtifacts(self.settings.artifacts_url)
            else:
                with _bus_is_there():
                    bucket = await self.js.object_store(topology.ARTIFACTS)
                self._artifacts = JetStreamArtifacts(self.js, bucket, topology.ARTIFACTS, self.room.stored)
        return self._artifacts

    async def last_seq(self) -> int:
        """Sequence number of the newest event in the log. RetryableError when the bus stays away."""
        for _ in range(ANSWER_TRIES):
            with contextlib.suppress(TimeoutError, NatsError):
                return (await self.js.stream_info(topology.EVENTS)).state.last_seq
            await asyncio.sleep(0.3)
        raise RetryableError("the bus does not answer", delay=10)

    async def log_size(self) -> tuple[int, int]:
        """Bytes in the log and its limit, -1 for none. LlamaDuoError where there is no log, or nobody answers."""
        try:
            info = await self.js.stream_info(topology.EVENTS)
        except NotFoundError as error:
            raise LlamaDuoError("this bus is not set up: run `llamaduo bootstrap`") from error
        except (TimeoutError, NatsError) as error:
            raise RetryableError(f"the bus does not answer: {type(error).__name__}") from error
        return info.state.bytes, info.config.max_bytes or -1

    async def log(
        self, subjects: Sequence[str] | None = None, *, follow: bool, drained: asyncio.Event | None = None
    ) -> AsyncIterator[Logged]:
        """Replay the log from its start; with `follow` for ever, else up to its present end.

        Survives server restarts: it keeps its own place and asks again from there. Foreign messages are skipped.
        `drained` is set once everything that was there has been taken.
        """
        end = None if follow else await self.last_seq()
        if end == 0:
            return
        reading = messages(self.js, topology.EVENTS, subjects, patience=1 if end is not None else 5)
        async with contextlib.aclosing(reading):
            async for message in reading:
                if message is None:
                    if end is not None:
                        return
                    if drained is not None:
                        drained.set()
                    continue
                seq = message.metadata.sequence.stream
                if end is not None and seq > end:
                    return
                try:
                    yield Logged(parse_event(message.data), seq)
                except BadEvent:
                    log.debug("skipping message %d of the log: no event of this contract", seq)
                if seq == end:
                    return

    async def progress(self, payload: Progress) -> None:
        """Tell who listens how far work is; lost if nobody does."""
        with contextlib.suppress(Exception):
            await self.client.publish(topology.PROGRESS_PREFIX + payload.service, payload.model_dump_json().encode())

    async def watch_progress(self) -> AsyncIterator[Progress]:
        """Progress of everybody, from now on."""
        queue: asyncio.Queue[Progress] = asyncio.Queue(maxsize=1000)

        async def take(message: Msg) -> None:
            with contextlib.suppress(ValueError, asyncio.QueueFull):
                queue.put_nowait(Progress.model_validate_json(message.data))

        sub = await self.client.subscribe(f"{topology.PROGRESS_PREFIX}>", cb=take)
        try:
            while True:
                yield await queue.get()
        finally:
            with contextlib.suppress(Exception):
                await sub.unsubscribe()
