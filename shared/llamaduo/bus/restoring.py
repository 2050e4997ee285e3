"""A backup back on an empty bus: artifacts, buckets, dead letters, log, and the durables where they stood, last.

Nobody may work on the bus meanwhile. Durables come last, so a service that is started too early waits for them; and a
restore that was interrupted is known by their absence, and goes on when it is called again.
"""

from __future__ import annotations

import bisect
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from llamaduo.bus import topology
from llamaduo.bus.backing_up import Told
from llamaduo.bus.backup_place import Manifest, Place, StoredFile
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import PUBLISHED_AT
from llamaduo.bus.stream_lines import MESSAGE_ID, Line, decoded
from llamaduo.bus.stream_messages import messages
from llamaduo.bus.work import Record
from llamaduo.errors import LlamaDuoError, RetryableError, UserInputError
from llamaduo.event_parts import ArtifactRef

ORDER = (*(f"KV_{bucket}" for bucket in topology.BUCKETS), topology.DEAD_LETTERS, topology.EVENTS)


@dataclass(frozen=True)
class Restored:
    """What came of it. `already`: this very backup was there before, and nothing was done."""

    manifest: Manifest
    unknown: list[str]
    already: bool = False


async def restore(bus: Bus, place: Place, told: Told, *, profile: str) -> Restored:
    """Put a backup on a bus that is empty, or on which this very restore was interrupted.

    UserInputError where the backup is not whole or not sound, or the bus holds something else. RetryableError where
    the bus or the place cannot be reached.
    """
    manifest = await place.manifest()
    _check_artifacts_url(manifest, bus)
    with tempfile.TemporaryDirectory(prefix="llamaduo-restore-") as name:
        folder = Path(name)
        for stream, file in manifest.streams.items():
            await place.fetch(file, folder / stream)
        await place.fetch(manifest.artifacts, folder / "artifacts")
        try:
            if await _is_there(bus, manifest, folder):
                return Restored(manifest, [], already=True)
            await _put_artifacts(bus, place, folder, manifest.artifacts, told)
            await topology.make_stores(bus.js, max_bytes=manifest.max_bytes)
            for stream in ORDER:
                await _put_stream(bus, stream, folder / stream, manifest.streams[stream].lines, told)
            unknown = await _put_durables(bus, manifest, folder, profile)
            await topology.bootstrap(bus.js, profile=profile, max_bytes=manifest.max_bytes)
        except (TimeoutError, NatsError) as error:
            raise RetryableError(f"the bus does not answer: {type(error).__name__}; restore again") from error
    return Restored(manifest, unknown)


def _check_artifacts_url(manifest: Manifest, bus: Bus) -> None:
    there, here = manifest.artifacts_url, bus.settings.artifacts_url
    if there != here:
        set_it = f"set LLAMADUO_ARTIFACTS_URL={there}" if there else "unset LLAMADUO_ARTIFACTS_URL"
        raise UserInputError(
            f"the artifacts of this backup were in {there or 'JetStream'}, and here they would be in "
            f"{here or 'JetStream'}: events name the place",
            hint=set_it,
        )


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for raw in file:
            try:
                yield decoded(raw)
            except (ValueError, KeyError, TypeError) as error:
                raise UserInputError(f"the backup's {path.name} holds a line that is no message") from error


async def _is_there(bus: Bus, manifest: Manifest, folder: Path) -> bool:
    """Whether this backup is on the bus already. UserInputError where the bus holds anything else, or is in use."""
    try:
        state = (await bus.js.stream_info(topology.EVENTS)).state
    except NotFoundError:
        return False
    held = state.messages
    if state.last_seq != held:  # events were deleted there, and so the copy could not be numbered from 1
        raise _not_empty(topology.EVENTS)
    durables = [info for info in await bus.js.consumers_info(topology.EVENTS) if info.config.durable_name]
    busy = sorted(info.name for info in durables if info.num_waiting)
    if busy:
        raise UserInputError(
            f"services are at work on this bus ({busy[0]})", hint="stop them first: `llamaduo down`, then restore"
        )
    await _check_held(bus, topology.EVENTS, folder)
    if held and durables:
        if held < manifest.streams[topology.EVENTS].lines:
            raise _not_empty(topology.EVENTS)
        return True
    for durable in durables:  # of a bootstrap; they are made again where they stood
        await bus.js.delete_consumer(topology.EVENTS, durable.name)
    for stream in ORDER[:-1]:
        await _check_held(bus, stream, folder)
    return False


async def _check_held(bus: Bus, stream: str, folder: Path) -> None:
    """UserInputError where a stream holds what the backup does not."""
    known = {_mark(line.subject, line.body) for line in _lines(folder / stream)}
    if stream == "KV_work":
        known |= {_mark(line.subject, handed_back(line.body)) for line in _lines(folder / stream)}
    try:
        if (await bus.js.stream_info(stream)).state.messages == 0:
            return
    except NotFoundError:
        return
    reading = messages(bus.js, stream, patience=1)
    try:
        async for message in reading:
            if message is None:
                return
            if _mark(message.subject, message.data) not in known:
                raise _not_empty(stream)
    finally:
        await reading.aclose()


def _mark(subject: str, body: bytes) -> bytes:
    return hashlib.sha256(subject.encode() + b"\n" + body).digest()


def _not_empty(stream: str) -> UserInputError:
    return UserInputError(
        f"this bus is not empty: {stream} holds what is not in the backup",
        hint="restore to an empty state folder (--state) or an empty server",
    )


async def _put_artifacts(bus: Bus, place: Place, folder: Path, listed: StoredFile, told: Told) -> None:
    await topology.make_artifact_store(bus.js)
    store = await bus.artifacts()
    path = folder / "artifact"
    with (folder / "artifacts").open("rb") as file:
        for number, raw in enumerate(file, start=1):
            ref = ArtifactRef.model_validate_json(raw)
            await place.fetch(ref, path)
            put = await store.put_file(path, ref.media_type)
            if put.uri != ref.uri:
                raise LlamaDuoError(f"{ref.uri} would be {put.uri} here, and events name the place")
            path.unlink()
            told("artifacts", number, listed.lines)


def handed_back(body: bytes) -> bytes:
    """A job's record as it is where nobody has the job in hand any more; that is no failed try of it."""
    record = Record.model_validate_json(body)
    if record.state != "running":
        return body
    free = {"state": "free", "until": 0.0, "releases": record.releases + 1}
    return record.model_copy(update=free).model_dump_json().encode()


async def _put_stream(bus: Bus, stream: str, path: Path, total: int, told: Told) -> None:
    """Publish what is not there yet, in order, each message once.

    A message's id is kept, so that the broker goes on dropping repeats of it. A repeat that is in the log (the
    broker remembers a day) gets an id of its own here: durables stand at a number of messages.
    """
    done = (await bus.js.stream_info(stream)).state.messages if stream == topology.EVENTS else 0
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), start=1):
        own = line.headers.get(MESSAGE_ID)
        known = own is None or own in seen
        seen.add(own or "")
        if number > done:
            headers = dict(line.headers)
            if not stream.startswith("KV_"):
                headers[MESSAGE_ID] = f"restored:{number}" if known or own is None else own
            if stream == topology.DEAD_LETTERS:
                headers.setdefault(PUBLISHED_AT, line.at.isoformat())
            if stream == topology.EVENTS:
                headers["Nats-Expected-Last-Sequence"] = str(number - 1)
            body = handed_back(line.body) if stream == "KV_work" and line.body else line.body
            await _put(bus, stream, line.subject, body, headers)
        told(stream, number, total)


async def _put(bus: Bus, stream: str, subject: str, body: bytes, headers: dict[str, str]) -> None:
    try:
        await bus.js.publish(subject, body, stream=stream, headers=headers)
    except APIError as error:
        raise LlamaDuoError(f"{stream} refuses a message: {error.description}; restore again to go on") from error


async def _put_durables(bus: Bus, manifest: Manifest, folder: Path, profile: str) -> list[str]:
    """Durables that begin after what they had settled; the names of those that nobody knows here."""
    numbers = [line.seq for line in _lines(folder / topology.EVENTS)]
    ours = {durable.name: durable for contract in topology.SERVICES.values() for durable in contract.durables}
    unknown = []
    for position in manifest.durables:
        name = position.durable
        durable = ours.get(name)
        if durable is None and name.startswith("evaluator-"):
            durable = topology.durable_for_evaluator(name.removeprefix("evaluator-"))
        if durable is None:
            unknown.append(name)
            continue
        # The copy is numbered from 1 without gaps.
        start = bisect.bisect_right(numbers, position.settled) + 1
        await topology.ensure_durable(bus.js, durable, profile, DeliverPolicy.BY_START_SEQUENCE, start=start)
    return unknown
