"""The log as one process sees it: replayed at start, folded per migration, kept up to date, without effects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus, Place
from llamaduo.errors import NotYet
from llamaduo.events import (
    AnyEvent,
    Event,
    MigrationCancelled,
    MigrationCompleted,
    MigrationStopped,
    TrafficCaptured,
)
from llamaduo.migrations.fold import MigrationView

log = logging.getLogger(__name__)
ENDS = (MigrationCompleted, MigrationStopped, MigrationCancelled)


class Mirror:
    """Views of all migrations that have not ended; ended ones are only remembered by id."""

    def __init__(self, bus: Bus, types: Sequence[type[Event]]) -> None:
        self._bus = bus
        self._subjects = None if set(types) >= set(topology.ALL) else topology.subjects_for(types)
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[AnyEvent], None]] = []
        self._views: dict[str, MigrationView] = {}
        self._ended: set[str] = set()
        self._place = Place()
        self.seq = 0
        self.ready = False

    def on_event(self, listener: Callable[[AnyEvent], None]) -> None:
        """Call `listener` with every event after it was folded."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Begin to replay; returns when what was in the log has been folded."""
        self._task = asyncio.create_task(self._run(), name="mirror")
        waiting = asyncio.create_task(self._place.drained.wait())
        done, _ = await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task in done:
            waiting.cancel()
            self._task.result()
        self.ready = True

    async def _run(self) -> None:
        async for logged in self._bus.log(self._subjects, follow=True, place=self._place):
            self._fold(logged.event)
            for listener in self._listeners:
                try:
                    listener(logged.event)
                except Exception:
                    # It is in the log for ever: a service that ended here would end at every start.
                    log.exception("message %d of the log (%s) is left out", logged.seq, logged.event.type)
            async with self._changed:
                self.seq = logged.seq
                self._changed.notify_all()

    def _fold(self, event: AnyEvent) -> None:
        if event.migration in self._ended or isinstance(event, TrafficCaptured):
            return
        view = self._views.setdefault(event.migration, MigrationView(event.migration))
        view.add(event)
        if isinstance(event, ENDS):
            self._ended.add(event.migration)
            del self._views[event.migration]

    async def stop(self) -> None:
        """Stop following."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)

    @property
    def failed(self) -> bool:
        """Whether the reader died (a bug): the process should not call itself ready."""
        return self._task is not None and self._task.done()

    def has_ended(self, migration: str) -> bool:
        """Whether this migration is over."""
        if migration in self._ended:
            return True
        view = self._views.get(migration)
        return view is not None and view.ended is not None

    def get(self, migration: str) -> MigrationView | None:
        """The view of a migration that has not ended, if anything is known of it."""
        return self._views.get(migration)

    def open(self) -> list[MigrationView]:
        """All migrations that have not ended."""
        return [view for view in self._views.values() if view.ended is None]

    def has_read(self, seq: int) -> bool:
        """Whether everything up to this sequence number, of the kinds read here, was folded."""
        return self._place.following > seq

    async def up_to(self, seq: int, timeout: float = 10) -> None:
        """Wait until the message of this sequence number was folded. NotYet if that takes too long."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self.seq >= seq)
        except TimeoutError as error:
            raise NotYet(f"the log's message {seq} has not been replayed here yet", delay=1) from error
