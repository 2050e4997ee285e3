"""An operator's promotion of a migration that runs on, by the real inference service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llamaduo.artifacts import digest_of_file
from llamaduo.events import Adapter, AdapterPromoted, AdapterTrained, AnyEvent, PromoteRequested
from llamaduo.identity import adapter_digest
from services.inference.adapter_check import WEIGHTS
from services.inference.app import build
from services.inference.settings import InferenceSettings
from tests.adapter_files import write_safetensors
from tests.simulated import dataset, requested, trained
from tests.support import connected, nats_server, serving, until


async def test_a_round_is_promoted_before_its_migration_has_ended(tmp_path: Path) -> None:
    write_safetensors(tmp_path / WEIGHTS, {}, {"rows": "30"})
    settings = {"profile": "faults", "replica": "one", "state_dir": tmp_path, "inference_engine": "fake"}
    with nats_server(tmp_path / "nats") as server:
        service = build(InferenceSettings.model_validate({"nats_url": server.url, **settings}))
        known = asyncio.Event()
        service.on_event(lambda event: known.set() if isinstance(event, AdapterTrained) else None)
        async with connected(server, tmp_path) as bus, serving(service):
            files = {WEIGHTS: await (await bus.artifacts()).put_file(tmp_path / WEIGHTS, "application/octet-stream")}
            digest = adapter_digest({WEIGHTS: digest_of_file(tmp_path / WEIGHTS)[0]})
            adapter = Adapter(digest=digest, files=files, base_model="base", base_digest="d", rank=16)
            made = trained(0).model_copy(update={"adapter": adapter})
            command = PromoteRequested(migration="m-1", command="c-12345678", round=0)
            for event in (requested(), dataset(0), made):
                await bus.publish(event)
            await asyncio.wait_for(known.wait(), 20)
            await bus.publish(command)

            async def settled() -> list[AnyEvent]:
                said = [logged.event async for logged in bus.log(follow=False)]
                return [event for event in said if event.type in ("adapter.promoted", "work.failed")]

            (promoted,) = await until(settled)
            assert isinstance(promoted, AdapterPromoted), promoted
            assert (promoted.adapter.digest, promoted.command) == (digest, command.command)
