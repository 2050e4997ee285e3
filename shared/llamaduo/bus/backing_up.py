"""A backup of the bus while everything runs: positions, log, dead letters, buckets, artifacts, in this order.

The order is what makes it consistent. What a durable had settled has its results in the log by then, so positions
are read before the log. What the log refers to was stored before it was published, and so with the buckets: artifacts
come last. A bucket that is newer than the log is no harm: a job is found finished and announced again, a call is
found answered. What is done after the backup is not in it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js.api import ConsumerInfo
from nats.js.errors import NotFoundError

from llamaduo.bus import topology
from llamaduo.bus.backup_place import Manifest, Place, Position, StoredFile
from llamaduo.bus.connection import Bus
from llamaduo.bus.stream_lines import encoded, line_of, references
from llamaduo.bus.stream_messages import messages
from llamaduo.errors import ArtifactCorrupt, LlamaDuoError, RetryableError
from llamaduo.event_parts import ArtifactRef

STREAMS = (topology.EVENTS, topology.DEAD_LETTERS, *(f"KV_{bucket}" for bucket in topology.BUCKETS))
"""In the order in which they are read: the budget after the ledger, so that nothing paid is missing in it."""
REFER = (topology.EVENTS, topology.DEAD_LETTERS, "KV_work")
"""Where artifacts are referred to."""
Told = Callable[[str, int, int], None]
"""Hears what is copied, how much of it is done, and how much there is."""


@dataclass
class _Copy:
    """A backup under way."""

    bus: Bus
    place: Place
    folder: Path
    told: Told
    artifacts: dict[str, ArtifactRef] = field(default_factory=dict)


async def back_up(bus: Bus, place: Place, told: Told) -> Manifest:
    """Copy all that a system needs to go on elsewhere. Interrupted, it leaves an earlier backup there as it was.

    LlamaDuoError where the bus is not set up, RetryableError where it or the place cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="llamaduo-backup-") as folder:
        copy = _Copy(bus, place, Path(folder), told)
        try:
            info = await bus.js.stream_info(topology.EVENTS)
            positions = await _positions(bus)
            streams = {stream: await _copy_stream(copy, stream) for stream in STREAMS}
        except NotFoundError as error:
            raise LlamaDuoError("this bus is not set up: there is nothing to back up") from error
        except (TimeoutError, NatsError) as error:
            raise RetryableError(f"the bus does not answer: {type(error).__name__}") from error
        artifacts, size, missing = await _copy_artifacts(copy)
        manifest = Manifest(
            made_at=datetime.now(UTC),
            version=version("llamaduo"),
            artifacts_url=bus.settings.artifacts_url,
            max_bytes=info.config.max_bytes or -1,
            streams=streams,
            durables=positions,
            artifacts=artifacts,
            artifact_bytes=size,
            missing=missing,
        )
        await place.put_manifest(manifest)
        return manifest


async def _positions(bus: Bus) -> list[Position]:
    infos: list[ConsumerInfo] = []
    while page := await bus.js.consumers_info(topology.EVENTS, offset=len(infos)):
        infos += page
    # The others are readers that somebody has open just now.
    settled = {i.name: i.ack_floor.stream_seq if i.ack_floor else 0 for i in infos if i.config.durable_name}
    return [Position(durable=name, settled=seq) for name, seq in sorted(settled.items())]


async def _copy_stream(copy: _Copy, stream: str) -> StoredFile:
    """All messages up to some moment of the copying. Of a key it may hold an older value before the newest."""
    total = (await copy.bus.js.stream_info(stream)).state.messages
    path, lines = copy.folder / stream, 0
    reading = messages(copy.bus.js, stream, patience=1)
    async with contextlib.aclosing(reading):
        with path.open("wb") as file:
            async for message in reading:
                if message is None:
                    break
                line = line_of(message)
                file.write(encoded(line))
                if stream in REFER:
                    copy.artifacts |= {ref.uri: ref for ref in references(line.body)}
                lines += 1
                copy.told(stream, lines, max(total, lines))
    stored = await copy.place.put(path, lines)
    path.unlink()
    return stored


async def _copy_artifacts(copy: _Copy) -> tuple[StoredFile, int, list[str]]:
    """The list of those that are in the backup, their bytes, and what could not be read."""
    store = await copy.bus.artifacts()
    missing: list[str] = []
    listing, size, kept = copy.folder / "artifacts", 0, 0
    with listing.open("wb") as file:
        for number, ref in enumerate(copy.artifacts.values(), start=1):
            if not await copy.place.holds(ref.sha256, ref.size):
                path = copy.folder / "artifact"
                try:
                    await store.fetch(ref, path)
                except ArtifactCorrupt as error:
                    missing.append(str(error))
                    continue
                await copy.place.put(path, 0)
                path.unlink()
            file.write(ref.model_dump_json().encode() + b"\n")
            size, kept = size + ref.size, kept + 1
            copy.told("artifacts", number, len(copy.artifacts))
    return await copy.place.put(listing, kept), size, missing
