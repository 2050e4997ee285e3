"""One connection to the bus: publish once, replay the log, buckets, artifacts, progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from faststream import AckPolicy
from faststream.nats import NatsBroker
from faststream.nats.security import NatsSecurity, NatsUserPassword
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import NotFoundError

from llamaduo import tls
from llamaduo.artifacts import ArtifactStore, JetStreamArtifacts, ObjectStoreArtifacts
from llamaduo.bus import topology
from llamaduo.bus.denials import Denials
from llamaduo.bus.kv import KeyValue, NatsKeyValue
from llamaduo.bus.progress import Progress
from llamaduo.bus.reading import Stored, StreamReader, WakeUps
from llamaduo.bus.room import Room
from llamaduo.bus.trace import traceparent
from llamaduo.errors import BadEvent, PermanentError, RetryableError
from llamaduo.events import AnyEvent, Event, encode_event, event_of, subject_for
from llamaduo.settings import BusSettings, bus_login

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 5.0
ANSWER_TRIES = 20


@dataclass(frozen=True)
class Logged:
    """An event with its sequence number in the log."""

    event: AnyEvent
    seq: int


@dataclass
class Place:
    """Where somebody who follows the log is; `Bus.log` keeps it up to date."""

    drained: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once everything that was there at first has been taken."""
    following: int = 1
    """The sequence number to go on from: all before it was taken."""


@dataclass(frozen=True)
class StreamSize:
    """Messages and bytes of a stream, and the bytes at which it refuses more; 0 where it never does."""

    messages: int
    size: int
    limit: int


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
        "traceparent": traceparent(event),
    }


def header_bytes(headers: Mapping[str, str]) -> int:
    """Bytes of message headers on the wire, which count towards the server's limit as the body does."""
    expected = len(f"Nats-Expected-Stream: {topology.DEAD_LETTERS}\r\n")  # which the client adds
    return 12 + expected + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())


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
        self,
        broker: NatsBroker,
        client: Client,
        settings: BusSettings,
        name: str,
        denials: Denials,
        *,
        patient: bool = False,
    ) -> None:
        self.broker, self.client, self.settings, self.name = broker, client, settings, name
        self.denials = denials
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
        login, context = bus_login(settings), tls.for_bus(settings)
        # With the handshake first: else a bus that says it has no TLS would be sent the password in the clear.
        secure: dict[str, Any] = {"ssl_context": context, "tls_handshake_first": context is not None}
        security = NatsUserPassword(*login, **secure) if login is not None else NatsSecurity(**secure)

        denials = Denials(settings.nats_user or name)

        async def on_error(error: Exception) -> None:
            if not denials.hear(error):
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
            security=security,
        )
        await tls.greet(settings.nats_url, context, wait=wait)
        await broker.connect()
        client = broker.connection
        asking = client.request

        async def request(subject: str, *given: Any, **named: Any) -> Msg:
            return await denials.watch(subject, asking(subject, *given, **named))

        client.request = request  # type: ignore[method-assign]
        return cls(broker, client, settings, name, denials, patient=patient)

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
        where the event is too large for it, Denied where this user may not.
        """
        subject, body, headers = subject_for(event), encode_event(event), headers_of(event)
        ack = await self._publish(subject, body, topology.EVENTS, headers)
        if ack.duplicate and not await self._is_in_the_log(event, ack.seq):
            log.error("%s: somebody published something else under the id %s", subject, event.id)
            headers["Nats-Msg-Id"] = f"{event.id}:{uuid4().hex}"
            ack = await self._publish(subject, body, topology.EVENTS, headers)
        return not ack.duplicate

    async def _is_in_the_log(self, event: Event, seq: int) -> bool:
        """Whether what the server takes for a repeat is one: it compares ids alone, and anybody can send any."""
        stored = await self.stored(seq)
        try:
            return stored is None or event_of(stored.subject, stored.body).id == event.id
        except BadEvent:
            return False

    async def stored(self, seq: int) -> Stored | None:
        """What the log has at this place. RetryableError when the bus stays away."""
        with _bus_is_there():
            found, _ = await self._reader(topology.EVENTS).batch(seq, most=1)
        return found[0] if found and found[0].seq == seq else None

    async def publish_dead_letter(self, consumer: str, subject: str, body: bytes, headers: dict[str, str]) -> bool:
        """Store a dead letter of this consumer under the id in its headers."""
        where = f"{topology.DEAD_LETTER_PREFIX}{consumer}.{subject}"
        return not (await self._publish(where, body, topology.DEAD_LETTERS, headers)).duplicate

    async def republish(self, subject: str, body: bytes, headers: dict[str, str]) -> bool:
        """Put a dead letter's body back on its own subject."""
        return not (await self._publish(subject, body, topology.EVENTS, headers)).duplicate

    async def _publish(self, subject: str, body: bytes, stream: str, headers: dict[str, str]) -> PubAck:
        size = len(body) + header_bytes(headers)
        if size > self.client.max_payload:  # the server breaks the connection of a client that tries
            raise PermanentError(f"{subject}: {size} bytes are more than the bus takes at once")

        async def send() -> PubAck:
            return await self.js.publish(subject, body, timeout=PUBLISH_TIMEOUT_S, stream=stream, headers=headers)

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
                    await self.js.stream_info(f"OBJ_{topology.ARTIFACTS}")
                self._artifacts = JetStreamArtifacts(
                    self.client, topology.ARTIFACTS, self._reader(f"OBJ_{topology.ARTIFACTS}"), self.room.stored
                )
        return self._artifacts

    def _reader(self, stream: str) -> StreamReader:
        return StreamReader(self.client, stream, self.denials)

    async def stream_size(self, stream: str) -> StreamSize:
        """How full a stream is. RetryableError when the bus stays away, or is not set up."""
        try:
            with _bus_is_there():
                info = await self.js.stream_info(stream)
        except NotFoundError as error:
            raise RetryableError("this bus is not set up: run `llamaduo bootstrap`", delay=10) from error
        return StreamSize(info.state.messages, info.state.bytes, max(0, info.config.max_bytes or 0))

    async def last_seq(self) -> int:
        """Sequence number of the newest event in the log. RetryableError when the bus stays away."""
        for _ in range(ANSWER_TRIES):
            with contextlib.suppress(TimeoutError, NatsError):
                return (await self.js.stream_info(topology.EVENTS)).state.last_seq
            await asyncio.sleep(0.3)
        raise RetryableError("the bus does not answer", delay=10)

    async def log(
        self, subjects: Sequence[str] | None = None, *, follow: bool, place: Place | None = None
    ) -> AsyncIterator[Logged]:
        """Replay the log from its start; with `follow` for ever, else up to its present end.

        Survives server restarts: it keeps its own place and asks again from there. Foreign messages are skipped.
        `place` is kept up to date meanwhile. RetryableError where the log is not there, unless it is followed.
        """
        place = place or Place()
        end = None if follow else await self.last_seq()
        reader, fruitless = self._reader(topology.EVENTS), 0
        async with self._wake_ups(subjects) if follow else contextlib.nullcontext(WakeUps()) as woken:
            while end is None or place.following <= end:
                try:
                    messages, following = await reader.read(place.following, subjects or None)
                    fruitless = 0
                except (TimeoutError, NatsError) as error:
                    fruitless = fruitless + 1 if isinstance(error, NotFoundError) else 0
                    if end is not None and fruitless >= ANSWER_TRIES:
                        raise RetryableError("the log cannot be read: run `llamaduo bootstrap`", delay=10) from error
                    await asyncio.sleep(0.3)
                    continue
                if following == place.following:
                    place.drained.set()
                    if end is not None:
                        return
                    await woken.wait()
                    continue
                for message in messages:
                    try:
                        yield Logged(event_of(message.subject, message.body), message.seq)
                    except BadEvent:
                        log.debug("skipping message %d of the log: no event of this contract", message.seq)
                place.following = following

    @contextlib.asynccontextmanager
    async def _wake_ups(self, subjects: Sequence[str] | None) -> AsyncIterator[WakeUps]:
        """Told of whatever is published on these subjects, all of the log by default."""
        woken = WakeUps(topology.TIMINGS[self.settings.profile].fetch)

        async def take(_: Msg) -> None:
            woken.wake()

        heard = []
        try:
            for subject in subjects or topology.log_subjects():
                with contextlib.suppress(NatsError):  # without it the reader looks by the clock
                    heard.append(await self.client.subscribe(subject, cb=take))
            yield woken
        finally:
            for sub in heard:
                with contextlib.suppress(Exception):
                    await sub.unsubscribe()

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
