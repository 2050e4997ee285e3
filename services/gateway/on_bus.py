"""The gateway's side of the bus: follows what aliases mean, for as long as it takes, and never stands in the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from llamaduo.bus.connection import Bus, Place
from llamaduo.bus.service import ended
from llamaduo.errors import describe
from llamaduo.events import subject_of
from llamaduo.settings import BusSettings
from services.gateway.local_models import READ, Known, LocalModels

log = logging.getLogger(__name__)

SERVICE = "gateway"
AGAIN_S = 2.0


class BusLink:
    """A connection that is made anew whenever it is lost. `bus` is None while there is none."""

    def __init__(self, settings: BusSettings, changed: Callable[[Known], None]) -> None:
        """`changed` is told what aliases mean once the log was read to its end, and at every change after that."""
        self._settings, self._changed = settings, changed
        self.bus: Bus | None = None

    async def stay(self) -> None:
        """Goes on for ever."""
        while True:
            bus: Bus | None = None
            try:
                bus = await Bus.connect(self._settings, SERVICE)
                self.bus = bus
                await self._follow(bus)
            except Exception as error:
                log.warning("the bus is tried again in %g s: %s", AGAIN_S, describe(error))
            finally:
                self.bus = None
                if bus is not None:
                    with suppress(Exception):
                        await bus.close()
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, bus: Bus) -> None:
        """Until the connection is lost for good."""
        place, models = Place(), LocalModels()

        async def read() -> None:
            subjects = [subject_of(model) for model in READ]
            async for logged in bus.log(subjects, follow=True, place=place):
                models.take(logged.event)
                if place.drained.is_set():
                    self._changed(models.known())

        async def tell_once_drained() -> None:
            await place.drained.wait()
            self._changed(models.known())

        async def until_lost() -> None:
            while True:
                if (lost := bus.lost) is not None:
                    raise ConnectionError(lost)
                await asyncio.sleep(1)

        tasks = [asyncio.create_task(step) for step in (read(), until_lost())]
        telling = asyncio.create_task(tell_once_drained())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in (*tasks, telling):
                await ended(task)
