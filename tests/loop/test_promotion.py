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
    encode_event,
)
from llamaduo.identity import adapter_digest
from llamaduo.migrations.aliases import Aliases
from llamaduo.migrations.fold import fold
from services.inference.adapter_check import CONFIG, WEIGHTS
from services.inference.app import build
from services.inference.settings import InferenceSettings
from tests.adapter_files import write_safetensors
from tests.loop.test_settling import idle
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


async def test_promoted_rolled_back_and_promoted_again_the_alias_ends_at_the_last_command(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus:
            settings = InferenceSettings(
                nats_url=server.url, profile="faults", state_dir=tmp_path / "state", inference_engine="fake"
            )
            await bus.publish(requested("m-1"))
            adapter = await train(bus, tmp_path / "made", "m-1", 0)
            promote = PromoteRequested(migration="m-1", round=0, command="promote-1")
            back = RollbackRequested(migration="m-1", round=0, command="back-1234")
            again = PromoteRequested(migration="m-1", round=0, command="promote-2")
            async with serving(build(settings)):
                steps = [await answer_to(bus, command) for command in (promote, back, again)]
                assert [step.type for step in steps] == [
                    "adapter.promoted",
                    "adapter.rolled_back",
                    "adapter.promoted",
                ]
                # A command that is repeated later is the same command: it changes nothing any more.
                await bus.republish(
                    "adapter.rollback_requested", encode_event(back), {"Nats-Msg-Id": "back once more"}
                )
                await until(lambda: idle(bus, "inference-promotion"))
            log = [logged.event async for logged in bus.log(follow=False)]
            changes = [event for event in log if isinstance(event, AdapterPromoted | AdapterRolledBack)]
            assert [change.command for change in changes] == ["promote-1", "back-1234", "promote-2"]
            view = fold(event for event in log if event.migration == "m-1")
            assert isinstance(view.alias, AdapterPromoted) and view.alias.command == "promote-2"
            aliases = Aliases()
            for event in log:
                aliases.take(event)
            assert aliases.now["triage"].promoted.adapter == adapter


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
