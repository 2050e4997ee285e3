"""How a command reaches the bus and reads the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, TypeVar

from llamaduo.cli.nats_server import answers
from llamaduo.cli.state import nats_url, state_dir
from llamaduo.errors import LlamaDuoError, UserInputError

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.migrations.fold import MigrationView

T = TypeVar("T")
OPERATOR = "operator"


def run(work: Coroutine[None, None, T]) -> T:
    """Run a command; SIGTERM and SIGINT cancel it once, so that it can leave in good order."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        asked = False

        def leave() -> None:
            nonlocal asked
            if not asked:
                asked = True
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, leave)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return asyncio.run(main())


async def check_answers(url: str) -> None:
    """LlamaDuoError, with what to do, if no bus answers at any of these addresses."""
    from llamaduo.settings import BusSettings, read_settings
    from llamaduo.tls import for_bus

    context = for_bus(read_settings(BusSettings, nats_url=url))
    if not any([await answers(part.strip(), context=context) for part in url.split(",")]):
        raise LlamaDuoError(
            f"no bus answers at {url.rpartition('@')[2]}: start one with `llamaduo up`, or name it with "
            "--nats or LLAMADUO_NATS_URL (a system on another state folder: --state)"
        )


@contextlib.asynccontextmanager
async def the_bus() -> AsyncIterator[Bus]:
    """A connection to the bus that is up. LlamaDuoError, with what to do, if there is none."""
    url = nats_url(state_dir())
    await check_answers(url)
    from llamaduo.bus.connection import Bus
    from llamaduo.settings import BusSettings, read_settings

    os.environ.setdefault("LLAMADUO_LOG_LEVEL", "WARNING")
    settings = read_settings(BusSettings, nats_url=url)
    bus = await Bus.connect(settings, OPERATOR)
    try:
        yield bus
    finally:
        await bus.close()


async def all_views(bus: Bus) -> dict[str, MigrationView]:
    """Every migration in the log up to now, oldest first."""
    from llamaduo.events import TrafficCaptured
    from llamaduo.migrations.fold import MigrationView

    views: dict[str, MigrationView] = {}
    async for logged in bus.log(None, follow=False):
        if isinstance(logged.event, TrafficCaptured):
            continue
        migration = logged.event.migration
        views.setdefault(migration, MigrationView(migration)).add(logged.event)
    return views


def choose(views: dict[str, MigrationView], wanted: str | None) -> MigrationView:
    """The migration meant by an id, the beginning of one, or a name; the newest one where nothing is given.

    UserInputError if none or several are meant.
    """
    if not views:
        raise UserInputError("there are no migrations yet", hint="submit one: llamaduo migrate migration.yaml")
    if wanted is None:
        return next(reversed(views.values()))
    if wanted in views:
        return views[wanted]
    named = [view for view in views.values() if view.spec is not None and view.spec.name == wanted]
    if named:
        return named[-1]
    started = [view for view in views.values() if view.migration.startswith(wanted)]
    if len(started) == 1:
        return started[0]
    many = f"{len(started)} migrations begin with" if started else "there is no migration"
    raise UserInputError(f"{many} {wanted!r}", hint="`llamaduo status` lists them")
