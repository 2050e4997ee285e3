"""What the messages of one service share, and what a handler sees of its job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamaduo.bus.connection import Bus
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.progress import Progress
from llamaduo.bus.topology import Durable, ServiceContract, Timing
from llamaduo.errors import NotYet, PermanentError
from llamaduo.event_parts import CallCounts
from llamaduo.events import Event
from llamaduo.migrations.fold import MigrationView

if TYPE_CHECKING:
    from llamaduo.bus.tracing import Tracing


@dataclass(frozen=True)
class Work:
    """What a handler knows of the job beside the event: use it to read, to report progress, never to settle."""

    bus: Bus
    mirror: Mirror
    service: str
    replica: str
    role: str
    job: str
    attempt: int
    seq: int

    async def view(self, migration: str) -> MigrationView:
        """The migration's view, from the log itself where it has ended.

        NotYet where it is not known here, PermanentError where the log has no such migration.
        """
        view = self.mirror.get(migration)
        if view is None and self.mirror.has_ended(migration):
            view = MigrationView(migration)
            async for logged in self.bus.log(follow=False):
                view.add(logged.event)
        if view is None or view.spec is None:
            if self.mirror.has_read(self.seq):  # whoever asks for work has seen the submission: it would stand before
                raise PermanentError(f"nobody has submitted a migration {migration}")
            raise NotYet(f"the spec of {migration} has not been replayed here yet", delay=0.5)
        return view

    async def progress(self, event: Event, stage: str, done: float, total: float, note: str = "") -> None:
        """Tell who watches how far this job is."""
        await self.bus.progress(
            Progress(
                service=self.service,
                replica=self.replica,
                migration=event.migration,
                round=getattr(event, "round", None),
                stage=stage,
                done=done,
                total=total,
                note=note,
            )
        )


Handler = Callable[[Any, Work], Awaitable[Sequence[Event]]]


@dataclass
class Desk:
    """What all messages of one service share: who we are, what is in hand, whether we are leaving."""

    bus: Bus
    mirror: Mirror
    service: str
    replica: str
    contract: ServiceContract
    timing: Timing
    roles: dict[str, tuple[Durable, Handler]]
    bought_by: Callable[[str], CallCounts] = lambda _job: CallCounts()
    """What a job has bought of the service LLM since it was taken up here; asked once, when it is over."""
    tracing: Tracing | None = None
    running: dict[asyncio.Task[Any], str | None] = field(default_factory=dict)
    """Work in hand, with the migration whose end or cancelling stops it; None where nothing does."""
    withdrawn: set[asyncio.Task[Any]] = field(default_factory=set)
    stopping: bool = False

    def withdraw(self, migration: str) -> None:
        """Stop what is in hand for a migration that was cancelled or has ended."""
        for task, of in list(self.running.items()):
            if of == migration and not task.done():
                self.withdrawn.add(task)
                task.cancel()

    def put_down(self, migration: str) -> None:
        """Hand back what is in hand for a migration that was paused: it comes again, and waits."""
        for task, of in list(self.running.items()):
            if of == migration and not task.done():
                task.cancel()

    async def hand_back(self) -> None:
        """Cancel everything in hand and wait until each job was stopped; `stopping` keeps new ones out."""
        tasks = list(self.running)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=18)
