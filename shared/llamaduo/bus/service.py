"""A service: its roles on their durables, its mirror of the log, its health, and leaving in good order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web
from faststream.nats import JStream, PullSub
from faststream.nats.subscriber.usecases import PullStreamSubscriber
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from llamaduo import tls
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Desk, Handler
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.settling import Settling, run_in_hand
from llamaduo.errors import LlamaDuoError, RetryableError, UserInputError, describe
from llamaduo.event_parts import CallCounts
from llamaduo.events import AnyEvent, CancelRequested, PauseRequested
from llamaduo.health_api import health_app
from llamaduo.settings import ServiceSettings, bus_login
from llamaduo.telemetry import (
    BUS_CONNECTED,
    CONSUMER_LAG,
    CONSUMER_UNSETTLED,
    begin_counting,
    note_disk,
    set_up_logging,
)

if TYPE_CHECKING:
    from llamaduo.bus.tracing import Tracing

log = logging.getLogger(__name__)

GONE = 75
"""Exit code when what the service stands on has gone (its durable was deleted): a supervisor starts it anew."""


class Service:
    """Wires handlers to durables. `name` is a service of the topology, or `evaluator-<name>`."""

    def __init__(self, name: str, settings: ServiceSettings, *, roles: dict[str, tuple[Handler, int]]) -> None:
        """`roles`: durable name -> (handler, how many jobs at once in this process)."""
        self.name, self.settings = name, settings
        self.contract = topology.contract_of(name)
        self.timing = topology.TIMINGS[settings.profile]
        known = {durable.name: durable for durable in self.contract.durables}
        unknown = set(roles) - set(known)
        if unknown:
            raise ValueError(f"{name} has no durable {sorted(unknown)}")
        self._roles = {durable: (known[durable], handler) for durable, (handler, _) in roles.items()}
        for durable in roles:
            begin_counting(durable)
        self._copies = {durable: copies for durable, (_, copies) in roles.items()}
        self._opening: list[Callable[[Bus, Mirror], Awaitable[None]]] = []
        self._listeners: list[Callable[[AnyEvent], None]] = []
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._ready_checks: list[Callable[[], str | None]] = []
        self._background: list[Callable[[Bus, Mirror], Awaitable[None]]] = []
        self._bought_by: Callable[[str], CallCounts] = lambda _job: CallCounts()
        self._routes = web.RouteTableDef()
        self._stop = asyncio.Event()
        self._closing_connection = threading.Event()
        self._problems: list[str] = ["starting"]

    def on_event(self, listener: Callable[[AnyEvent], None]) -> None:
        """Call this with every broadcast event, from the beginning of the log on."""
        self._listeners.append(listener)

    def on_open(self, action: Callable[[Bus, Mirror], Awaitable[None]]) -> None:
        """Do this after the log was replayed and before the first message is taken."""
        self._opening.append(action)

    def on_close(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do this after work in hand was handed back."""
        self._closing.append(action)

    def counts_calls(self, bought_by: Callable[[str], CallCounts]) -> None:
        """Say with this what a job has bought that is withdrawn before it has a result."""
        self._bought_by = bought_by

    def ready_when(self, check: Callable[[], str | None]) -> None:
        """A further readiness check: None, or what is missing."""
        self._ready_checks.append(check)

    def serves(self, path: str, page: Callable[[], Awaitable[str]]) -> None:
        """A further page of text beside /metrics; a LlamaDuoError of it is answered with 503 and its words."""

        async def get(_: web.Request) -> web.Response:
            try:
                return web.Response(text=await page())
            except LlamaDuoError as error:
                return web.Response(text=str(error), status=503)

        self._routes.get(path)(get)

    def in_background(self, action: Callable[[Bus, Mirror], Awaitable[None]]) -> None:
        """Run this beside the handlers; its failure ends the service."""
        self._background.append(action)

    def stop(self) -> None:
        """Leave in good order."""
        self._stop.set()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; returns the process's work done in order. Exit code 2: settings are wrong."""
        set_up_logging(self.name, self.settings.log_level)
        code = asyncio.run(self._main())
        logging.shutdown()
        os._exit(code) if code else None

    async def _main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            tls.for_bus(self.settings), bus_login(self.settings)
            runner = await self._serve_http()
        except UserInputError as error:
            log.critical("%s", error)
            return 2
        code = 0
        try:
            await self.serve()
        except Exception:
            log.exception("the service cannot go on")
            code = GONE
        with contextlib.suppress(Exception):
            await runner.cleanup()
        return code

    async def serve(self) -> None:
        """Connect, replay, take messages until told to stop; then hand back what is in hand and close."""
        holder: list[Desk] = []

        def settling(msg: object, *, context: object) -> Settling:
            return Settling(msg, context=context, desk=holder[0])

        connecting = asyncio.create_task(Bus.connect(self.settings, self.name, middlewares=[settling], patient=True))
        leaving = asyncio.create_task(self._stop.wait())
        await asyncio.wait({connecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            return
        bus = connecting.result()
        self._closing_connection.clear()
        threading.Thread(target=self._die_when_closed, args=[bus], name="closed connection", daemon=True).start()
        mirror = Mirror(bus, self.contract.reads)
        desk = Desk(
            bus,
            mirror,
            self.name,
            self.settings.replica,
            self.contract,
            self.timing,
            dict(self._roles),
            self._bought_by,
            self._tracing(),
        )
        holder.append(desk)
        mirror.on_event(functools.partial(_stop_work, desk, mirror))
        for listener in self._listeners:
            mirror.on_event(listener)
        tasks: list[asyncio.Task[None]] = []
        try:
            opening = asyncio.create_task(self._open(bus, mirror), name="opening")
            tasks = [opening, asyncio.create_task(self._hold_on(bus), name="connection")]
            if await _first(leaving, tasks) is opening:
                tasks.append(asyncio.create_task(self._watch(bus, mirror), name="watch"))
                tasks += [asyncio.ensure_future(action(bus, mirror)) for action in self._background]
                await _first(leaving, tasks[1:])
        finally:
            self._problems = ["stopping"]
            leaving.cancel()
            for task in tasks:
                await ended(task)
            desk.stopping = True
            bus.room.leave()
            await _stop_fetching(bus)
            await desk.hand_back()
            for close in self._closing:
                with contextlib.suppress(Exception):
                    await close()
            await mirror.stop()
            if desk.tracing is not None:
                await asyncio.to_thread(desk.tracing.close)
            self._closing_connection.set()
            for subscriber in _pulling(bus):
                subscriber.running, subscriber.subscription = False, None
            await bus.close()

    def _die_when_closed(self, bus: Bus) -> None:
        """End the process once its connection is closed for good by anything but leaving.

        In a thread of its own: FastStream fetches from a closed connection without ever yielding, so the event loop
        is frozen by then. A `closed_cb` of the client comes before or after the freeze, as it happens.
        """
        while not self._closing_connection.wait(min(1.0, self.timing.tick)):
            if bus.client.is_closed:
                log.critical("%s: a supervisor has to start this service anew", bus.lost)
                logging.shutdown()
                os._exit(GONE)

    def _tracing(self) -> Tracing | None:
        if self.settings.otlp_endpoint is None:
            return None
        # Not loaded where nobody asks for it: it would weigh on every service.
        from llamaduo.bus.tracing import Tracing

        return Tracing(self.settings.otlp_endpoint, self.name, self.settings.replica)

    async def _hold_on(self, bus: Bus) -> None:
        """Ends, with RuntimeError, when no more is tried to reconnect."""
        while True:
            if (lost := bus.lost) is not None:
                raise RuntimeError(lost)
            await asyncio.sleep(min(1.0, self.timing.tick))

    async def _open(self, bus: Bus, mirror: Mirror) -> None:
        """Everything up to the first message."""
        await self._wait_for_topology(bus)
        await mirror.start()
        for action in self._opening:
            await self._patiently(functools.partial(action, bus, mirror))
        self._subscribe(bus)
        for subscriber in bus.broker.subscribers:
            await self._patiently(subscriber.start)

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do this step of opening; again for as long as the bus is away."""
        while True:
            try:
                return await step()
            except (NatsError, TimeoutError, RetryableError) as error:
                log.warning("opening is put off: %s", describe(error))
                self._problems = [f"opening is put off: {describe(error)}"]
            await asyncio.sleep(min(1.0, self.timing.tick))

    def _subscribe(self, bus: Bus) -> None:
        for durable, _ in self._roles.values():
            for _ in range(self._copies[durable.name]):
                subscriber = bus.broker.subscriber(
                    stream=JStream(topology.EVENTS, declare=False),
                    durable=durable.name,
                    config=topology.consumer_config(durable, self.timing),
                    pull_sub=PullSub(batch_size=1, timeout=self.timing.fetch),
                    inbox_prefix=f"{bus.inbox_prefix}.".encode(),
                    decoder=_undecoded,
                )
                subscriber(run_in_hand)

    async def _wait_for_topology(self, bus: Bus) -> None:
        """Until bootstrap has run: the durables and the buckets are there."""
        waited = False
        while problems := await self._missing(bus):
            if not waited:
                log.warning("waiting: %s", "; ".join(problems))
                waited = True
            self._problems = problems
            await asyncio.sleep(min(1.0, self.timing.tick))

    async def _missing(self, bus: Bus) -> list[str]:
        problems = []
        for durable, _ in self._roles.values():
            try:
                info = await bus.js.consumer_info(topology.EVENTS, durable.name)
            except NotFoundError:
                problems.append(f"durable {durable.name} does not exist: run `{topology.how_to_make(durable.name)}`")
                continue
            except (NatsError, APIError, TimeoutError) as error:
                return [f"the bus does not answer: {type(error).__name__}"]
            CONSUMER_LAG.labels(durable.name).set(info.num_pending or 0)
            CONSUMER_UNSETTLED.labels(durable.name).set(info.num_ack_pending or 0)
            wanted = topology.consumer_config(durable, self.timing)
            if sorted(info.config.filter_subjects or [info.config.filter_subject or ""]) != sorted(
                wanted.filter_subjects or []
            ):
                problems.append(f"durable {durable.name} filters other subjects: run `llamaduo bootstrap`")
            elif info.config.max_deliver not in (-1, None) or info.config.ack_wait != wanted.ack_wait:
                problems.append(f"durable {durable.name} has other settings: run `llamaduo bootstrap`")
        try:
            if not (await bus.js.stream_info(topology.EVENTS)).config.allow_direct:
                problems.append("the log is that of an older release: run `llamaduo bootstrap`")
            await bus.bucket("work")
        except NotFoundError:
            problems.append("bucket work does not exist: run `llamaduo bootstrap`")
        except (RetryableError, NatsError, TimeoutError) as error:
            return [f"the bus does not answer: {describe(error)}"]
        return problems

    async def _watch(self, bus: Bus, mirror: Mirror) -> None:
        """Keep readiness true, and leave when a durable is gone: the pull loop would spin without a sound."""
        gone = 0
        while True:
            BUS_CONNECTED.set(int(bus.client.is_connected))
            note_disk(self.settings.state_dir)
            problems = await self._missing(bus) if bus.client.is_connected else ["not connected to the bus"]
            gone = gone + 1 if any("does not exist" in p for p in problems) else 0
            if gone >= 3:
                raise RuntimeError("; ".join(problems))
            if bus.room.full is not None:
                problems.append(bus.room.full)
            if mirror.failed:
                raise RuntimeError("the reader of the log died")
            problems += [p for check in self._ready_checks if (p := check()) is not None]
            problems += [bus.denials.recent] if bus.denials.recent else []
            self._problems = problems
            await asyncio.sleep(self.timing.tick)

    async def _serve_http(self) -> web.AppRunner:
        app = health_app(self.name, self.settings.replica, lambda: self._problems)
        app.add_routes(self._routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(
            runner, self.settings.http_host, self.settings.http_port, ssl_context=tls.for_http(self.settings)
        )
        await site.start()
        if self.settings.port_file is not None:
            port = runner.addresses[0][1]
            temp = self.settings.port_file.with_suffix(".tmp")
            temp.write_text(str(port))
            temp.replace(self.settings.port_file)
        return runner


def _pulling(bus: Bus) -> list[PullStreamSubscriber]:
    return [subscriber for subscriber in bus.broker.subscribers if isinstance(subscriber, PullStreamSubscriber)]


async def _stop_fetching(bus: Bus) -> None:
    """Take no more messages, so that what is handed back goes to others and does not come here again at once.

    The subscribers run on: one that does not would drop what has arrived already instead of settling it.
    """
    for subscriber in _pulling(bus):
        if subscriber.subscription is not None:
            with contextlib.suppress(NatsError):
                await subscriber.subscription.unsubscribe()
    with contextlib.suppress(NatsError, TimeoutError):
        await bus.client.flush(timeout=2)


async def _first(leaving: asyncio.Task[Any], tasks: Sequence[asyncio.Task[None]]) -> asyncio.Task[Any]:
    """The first of these to end; its error is raised."""
    done, _ = await asyncio.wait([leaving, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return leaving if leaving in done else done.pop()


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: Python 3.11's `wait_for` can swallow one cancellation (CPython #81839)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)


async def _undecoded(msg: object) -> object:
    """Leave the body as it is: the settling middleware reads it."""
    return msg


def _stop_work(desk: Desk, mirror: Mirror, event: AnyEvent) -> None:
    if isinstance(event, (CancelRequested, *topology.ENDS)):
        desk.withdraw(event.migration)
    elif isinstance(event, PauseRequested) and (view := mirror.get(event.migration)) is not None and view.paused:
        desk.put_down(event.migration)
