"""Promotion and roll-back on a real server, across migrations of one name; the fake engine serves."""

from __future__ import annotations

from pathlib import Path

from llamaduo.bus.connection import Bus
from llamaduo.event_parts import Adapter
from llamaduo.events import (
    AdapterPromoted,
    AdapterRolledBack,
    AdapterTrained,
    Event,
    PromoteRequested,
    RollbackRequested,
)
from llamaduo.identity import adapter_digest
from services.inference.adapter_check import CONFIG, WEIGHTS
from services.inference.app import build
from services.inference.settings import InferenceSettings
from tests.adapter_files import write_safetensors
from tests.simulated import requested, trained
from tests.support import connected, nats_server, serving, until


async def train(bus: Bus, folder: Path, migration: str, number: int) -> Adapter:
    """A round's adapter as the fake trainer makes it, in the store and on the log."""
    folder = folder / f"{migration}-{number}"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    write_safetensors(folder / WEIGHTS, {}, {"rows": "100", "of": f"{migration} {number}"})
    store = await bus.artifacts()
    files = {name: await store.put_file(folder / name, "") for name in (CONFIG, WEIGHTS)}
    digest = adapter_digest({name: ref.sha256 for name, ref in files.items()})
    adapter = trained(number).adapter.model_copy(update={"files": files, "digest": digest})
    event = trained(number, migration).model_copy(update={"adapter": adapter})
    assert isinstance(event, AdapterTrained)
    await bus.publish(event)
    return adapter


async def answer_to(bus: Bus, asked: PromoteRequested | RollbackRequested) -> AdapterPromoted | AdapterRolledBack:
    """What inference publishes for an operator's command."""
    await bus.publish(asked)

    async def found() -> AdapterPromoted | AdapterRolledBack | None:
        log: list[Event] = [logged.event async for logged in bus.log(follow=False)]
        kinds = AdapterPromoted | AdapterRolledBack
        return next((event for event in log if isinstance(event, kinds) and event.command == asked.command), None)

    return await until(found, what=asked.type)


async def test_a_roll_back_finds_what_the_name_meant_before(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus:
            settings = InferenceSettings(
                nats_url=server.url, profile="faults", state_dir=tmp_path / "state", inference_engine="fake"
            )
            adapters = {}
            for migration in ("m-1", "m-2"):
                await bus.publish(requested(migration))
                for number in (0, 1):
                    adapters[migration, number] = await train(bus, tmp_path / "made", migration, number)
            promotions = [("m-1", 1), ("m-2", 0), ("m-2", 1)]
            # Of (migration, round): what the alias must mean once that was taken back.
            roll_backs = {("m-2", 1): ("m-2", 0), ("m-2", 0): ("m-1", 1), ("m-1", 1): None}
            async with serving(build(settings)):
                for migration, number in promotions:
                    promote = PromoteRequested(
                        migration=migration, round=number, command=f"promote {number}{migration}"
                    )
                    promoted = await answer_to(bus, promote)
                    assert isinstance(promoted, AdapterPromoted)
                    assert promoted.adapter == adapters[migration, number]
                for (migration, number), expected in roll_backs.items():
                    back = RollbackRequested(migration=migration, round=number, command=f"back {number} {migration}")
                    rolled_back = await answer_to(bus, back)
                    assert isinstance(rolled_back, AdapterRolledBack)
                    assert rolled_back.to == (adapters[expected] if expected else None)
