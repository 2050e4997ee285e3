"""Captured rows on their way from the spool to the bus: each closed file becomes an artifact and one event.

A file goes only after the log has its event. Killed in between, the same file is shipped once more: it has the same
digest, so it is the same artifact and the same event.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from llamaduo.bus.connection import Bus
from llamaduo.errors import describe
from llamaduo.event_parts import ArtifactRef
from llamaduo.events import TrafficCaptured
from services.gateway.metrics import SPOOL
from services.gateway.spool import Spool, segments, shippable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/x-ndjson"


def event_of(alias: str, ref: ArtifactRef, body: bytes, source: str) -> TrafficCaptured:
    """What the log learns of a file of rows. ValueError or KeyError where a line is none of ours."""
    times = [datetime.fromisoformat(json.loads(line)["at"]) for line in body.splitlines()]
    return TrafficCaptured(
        migration=f"traffic-{alias}", alias=alias, traffic=ref, rows=len(times), first=min(times), last=max(times),
        source=source,
    )  # fmt: skip


async def ship(path: Path, bus: Bus, source: str) -> bool:
    """Ship one file if it is closed; whether it was. Errors of the bus pass through, and the file stays."""
    with shippable(path) as ours:
        if not ours:
            return False
        body = await asyncio.to_thread(path.read_bytes)
        store = await bus.artifacts()
        ref = await store.put_file(path, MEDIA_TYPE)
        await bus.publish(event_of(path.parent.name, ref, body, source))
        path.unlink()
        return True


async def ship_all(folder: Path, bus: Bus, source: str) -> None:
    """Ship every closed file, oldest first. Errors of the bus pass through; a file that is none is put aside."""
    for path in segments(folder):
        try:
            await ship(path, bus, source)
        except (ValueError, KeyError) as error:
            log.error("%s holds no captured rows and is put aside: %s", path, describe(error))
            path.rename(path.with_suffix(".unreadable"))


async def keep_shipping(folder: Path, bus: Callable[[], Bus | None], source: str, every_s: float) -> None:
    """Goes on for ever."""
    while True:
        try:
            if (there := bus()) is not None and there.client.is_connected:
                await ship_all(folder, there, source)
        except Exception as error:
            log.warning("captured rows stay on disk for now: %s", describe(error))
        await asyncio.sleep(every_s)


async def keep_synced(spool: Spool, every_s: float) -> None:
    """Goes on for ever."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(spool.sync)
        except OSError as error:
            log.warning("captured rows could not be made safe on disk: %s", error)
        SPOOL.set(spool.used)
