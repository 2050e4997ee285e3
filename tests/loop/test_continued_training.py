"""`recipe.start` on a real server: what the trainer begins a round with. Training itself is the fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import put_bytes
from llamaduo.bus.connection import Bus
from llamaduo.datasets import Message, dump_rows, make_row
from llamaduo.events import AdapterTrained, DatasetReady
from services.trainer.app import build
from services.trainer.settings import TrainerSettings
from tests.simulated import dataset, requested
from tests.support import connected, nats_server, serving, until


async def data_of(bus: Bus, number: int) -> DatasetReady:
    """A round's data: five rows more each round, and those before."""
    rows = [
        make_row([Message(role="user", content=f"question {i}"), Message(role="assistant", content=f"answer {i}")])
        for i in range(5 + 5 * number)
    ]
    ref = await put_bytes(await bus.artifacts(), dump_rows(rows), "application/x-ndjson")
    event = dataset(number)
    return event.model_copy(update={"splits": {**event.splits, "train": ref}, "rows": {"train": len(rows)}})


async def adapters(bus: Bus, count: int) -> list[AdapterTrained] | None:
    log = [e.event async for e in bus.log(follow=False) if isinstance(e.event, AdapterTrained)]
    return sorted(log, key=lambda e: e.round) if len(log) == count else None


async def trained(folder: Path, **recipe: Any) -> list[AdapterTrained]:
    """The adapters of two rounds of a migration with this recipe."""
    with nats_server(folder / "nats") as server:
        async with connected(server, folder) as bus:
            settings: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}
            service = build(TrainerSettings(**settings, state_dir=folder, training_engine="fake", fake_seconds=0))
            async with serving(service):
                await bus.publish(requested(recipe={"steps": 2, "learning_rate": 0.001, **recipe}))
                await bus.publish(await data_of(bus, 0))
                await until(lambda: adapters(bus, 1), what="the adapter of round 0")
                await bus.publish(await data_of(bus, 1))
                return await until(lambda: adapters(bus, 2), what="the adapter of round 1")


async def test_by_default_every_round_begins_with_the_base(tmp_path: Path) -> None:
    first, second = await trained(tmp_path)
    assert (first.continued_from, second.continued_from) == (None, None)
    assert first.recipe["learning_rate"] == second.recipe["learning_rate"] == 0.001


async def test_a_later_round_can_go_on_from_the_adapter_before(tmp_path: Path) -> None:
    first, second = await trained(tmp_path / "on", start="previous")
    assert (first.continued_from, second.continued_from) == (None, first.adapter.digest)
    assert second.recipe["learning_rate"] == pytest.approx(0.0005)
    assert (first.rows_given, second.rows_given) == (5, 10), "the old rows are learned again"
