"""The verdict on the bus: every event is a reason to look at the log again and say what is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.service import Service
from llamaduo.bus.topology import TIMINGS
from llamaduo.errors import LlamaDuoError, RetryableError
from llamaduo.events import Event
from services.verdict.deciding import due
from services.verdict.metrics import LogFigures, look_at_streams
from services.verdict.settings import VerdictSettings

log = logging.getLogger(__name__)


async def look_again(event: Event, work: Work) -> Sequence[Event]:
    """What is due now that this event is in the log."""
    await work.mirror.up_to(work.seq)
    view = work.mirror.get(event.migration)
    return [] if view is None else due(view, datetime.now(UTC))


def build(settings: VerdictSettings) -> Service:
    """The verdict service."""
    service = Service("verdict", settings, roles={"verdict": (look_again, 1)})

    figures = LogFigures()

    async def measure_the_log(bus: Bus, mirror: Mirror) -> None:
        """For who watches; goes on for ever."""
        while True:
            try:
                figures.show(mirror.open(), datetime.now(UTC))
            except Exception:  # what is only looked at must not end who decides
                log.exception("the figures of the log are left as they were")
            with contextlib.suppress(RetryableError):
                await look_at_streams(bus)
            await asyncio.sleep(TIMINGS[settings.profile].tick)

    async def look_at_the_clock(bus: Bus, mirror: Mirror) -> None:
        """Rules that no event sets off: hours, and evaluators that stay silent."""
        while True:
            await asyncio.sleep(TIMINGS[settings.profile].tick)
            for view in mirror.open():
                try:
                    for event in due(view, datetime.now(UTC)):
                        await bus.publish(event.model_copy(update={"source": f"verdict/{settings.replica}"}))
                except LlamaDuoError as error:  # the next tick looks again, and the others are looked at now
                    log.warning("%s: %s", view.migration, error)

    service.on_event(figures.take)
    service.in_background(look_at_the_clock)
    service.in_background(measure_the_log)
    return service
