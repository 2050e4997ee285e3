"""A migration's events and artifacts as files: `python -m tests.stored_log FOLDER` runs one and writes them.

Kept of each release, so that the next one is shown to read it and go on from it (`tests/loop/test_upgrade.py`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus.connection import Bus, headers_of
from llamaduo.event_parts import ArtifactRef
from llamaduo.events import AnyEvent, encode_event, parse_event
from tests.loop.test_loop import TICKETS, all_services, emulator, ended, log_of, spec_of, submit
from tests.support import connected, nats_server, serving, until

EVENTS = "events.jsonl"
PLACE = "http://service-llm.invalid/v1"
SIZES = {"train": 20, "validation": 12, "test": 60, "holdout": 12}


def events_of(folder: Path, service_llm: str = PLACE) -> list[AnyEvent]:
    """The events in the order of the log, with the service LLM at `service_llm`."""
    lines = (folder / EVENTS).read_text("utf-8").replace(PLACE, service_llm).splitlines()
    return [parse_event(line.encode()) for line in lines]


async def restore(bus: Bus, folder: Path, events: list[AnyEvent]) -> None:
    """Put all artifacts and these events onto an empty bus."""
    store = await bus.artifacts()
    for file in sorted((folder / "artifacts").iterdir()):
        await put_bytes(store, file.read_bytes(), "application/octet-stream")
    for event in events:
        await bus.republish(event.type, encode_event(event), headers_of(event))  # no release said more in a subject


def as_of_now(events: list[AnyEvent]) -> list[AnyEvent]:
    """The same events, the last of them just now: a migration has a day, and was stored longer ago than that."""
    later = datetime.now(UTC) - events[-1].at
    return [event.model_copy(update={"at": event.at + later}) for event in events]


def refs_in(value: object) -> list[ArtifactRef]:
    """Every artifact that an event's JSON names."""
    if isinstance(value, dict):
        if {"uri", "sha256", "size", "media_type"} <= value.keys():
            return [ArtifactRef.model_validate(value)]
        return [ref for one in value.values() for ref in refs_in(one)]
    return [ref for one in value for ref in refs_in(one)] if isinstance(value, list) else []


async def store_log(folder: Path) -> None:
    """Run a small migration to its end and write what it left."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temp, nats_server(Path(temp) / "nats") as server:
        async with (
            connected(server, Path(temp)) as bus,
            emulator() as url,
            serving(*all_services(server, Path(temp))),
        ):
            coverage = Path(temp) / "tickets.jsonl"
            lines = TICKETS.read_text("utf-8").splitlines()[: sum(SIZES.values())]
            coverage.write_text("\n".join(lines) + "\n", "utf-8")
            changes = {"splits": SIZES, "synthesis": {"rows_per_round": 120}, "coverage": str(coverage)}
            migration = await submit(bus, spec_of(url, **changes))
            view = await until(lambda: ended(bus, migration), seconds=120, what="the end")
            print(view.stage, view.rounds)
            lines = [event.model_dump_json() for event in await log_of(bus, migration)]
            store = await bus.artifacts()
            for ref in {ref.sha256: ref for line in lines for ref in refs_in(json.loads(line))}.values():
                (folder / "artifacts" / ref.sha256).write_bytes(await read_bytes(store, ref))
            log = "\n".join(lines).replace(url, PLACE).replace(str(coverage), coverage.name)
            (folder / EVENTS).write_text(log + "\n", "utf-8")


if __name__ == "__main__":
    asyncio.run(store_log(Path(sys.argv[1])))
