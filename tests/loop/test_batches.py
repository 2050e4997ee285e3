"""Whole migrations whose service LLM is asked in batches: what the emulator counted, and a kill in the middle."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamaduo.bus.progress import Progress
from llamaduo.event_parts import CallCounts
from llamaduo.events import CancelRequested, EvalFailed, MigrationCompleted
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm import prices
from tests.faults.stage import Stage
from tests.faults.ways import Ways
from tests.loop.test_loop import all_services, emulator, ended, log_of, spec_of, submit
from tests.support import NatsServer, connected, nats_server, serving, until

SMALL = {"train": 30, "validation": 8, "test": 75, "holdout": 25}
TWO_ROUNDS: dict[str, Any] = {
    "gate": {"absolute": {"exact-match.exact": 0.5}},
    "splits": SMALL,
    "synthesis": {"rows_per_round": 80},
}
"""The first round fails, and the next one is sure to pass."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def get(url: str, path: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(url.removesuffix("/v1") + path) as answer:
        return await answer.json()


def batched(url: str) -> dict[str, Any]:
    return {"model": "openai:gpt-4o", "base_url": url, "requests_per_minute": 60_000, "batch": True}


def calls_of(view: MigrationView) -> CallCounts:
    return sum((event.calls for event in view.events.values() if hasattr(event, "calls")), CallCounts())


async def test_a_migration_by_batches_pays_half_and_buys_nothing_twice(server: NatsServer, tmp_path: Path) -> None:
    async with (
        connected(server, tmp_path) as bus,
        emulator(model_name="gpt-4o", batch_ms=0) as url,
        serving(*all_services(server, tmp_path)),
    ):
        spec = spec_of(url, service_llm=batched(url), **TWO_ROUNDS, budgets={"money": 5})
        migration = await submit(bus, spec)
        view = await until(lambda: ended(bus, migration), seconds=180, what="the end")
        assert isinstance(view.ended, MigrationCompleted), view.ended
        assert isinstance(view.decision(0), EvalFailed), "new rows were written, too"

        async def all_told() -> CallCounts | None:
            """The calls in events, once these tell of every call; marks in hand at the end come a little later."""
            calls = calls_of(fold(await log_of(bus, migration)))
            return calls if calls.made == (await get(url, "/emulator/ledger"))["totals"]["completed"] else None

        calls = await until(all_told, seconds=30, what="every call that the emulator counted in an event")
        counted = await get(url, "/emulator/ledger")
        totals = counted["totals"]
        tokens = totals["prompt_tokens"] + totals["completion_tokens"]
        assert calls.made == calls.batched == totals["batched"] > 100 and calls.rebought == calls.failed == 0
        assert Counter(key["completed"] for key in counted["keys"].values()) == {1: totals["completed"]}
        assert totals["billed_tokens"] == tokens / 2
        online = prices.money(ServiceLLM(model="openai:gpt-4o"), totals["prompt_tokens"], totals["completion_tokens"])
        assert online and calls.money == pytest.approx(online / 2)
        batches = (await get(url, "/v1/batches"))["data"]
        assert {batch["status"] for batch in batches} == {"completed"}
        print(f"{calls.made} calls in {len(batches)} batches: US$ {calls.money:.4f}, online US$ {online:.4f}")
        assert len(batches) < calls.made / 10


async def test_killed_while_its_batch_is_under_way_it_takes_it_up_and_buys_nothing_again(
    server: NatsServer, tmp_path: Path
) -> None:
    """The synthesizer dies twice: with references in a batch, and with new rows."""
    async with (
        connected(server, tmp_path) as bus,
        emulator(model_name="gpt-4o", batch_ms=700) as url,
        serving(*(one for one in all_services(server, tmp_path) if one.name != "synthesizer")),
    ):
        ways = Ways(server.port)
        stage = Stage(tmp_path, server, url, ways)
        stage.start("synthesizer")
        try:
            spec = spec_of(url, service_llm=batched(url), **TWO_ROUNDS, evaluators=["exact-match"])
            migration = await submit(bus, spec)
            await kill_during_a_batch(stage, url, lambda request: "pairs" not in request)
            await kill_during_a_batch(stage, url, lambda request: "pairs" in request)
            view = await until(lambda: ended(bus, migration), seconds=180, what="the end")
        finally:
            stage.stop()
            ways.close()
        assert isinstance(view.ended, MigrationCompleted), (view.ended, stage.logs())
        counted = await get(url, "/emulator/ledger")
        assert {key["completed"] for key in counted["keys"].values()} == {1}, stage.logs()
        calls = calls_of(view)
        assert calls.rebought == 0
        assert calls.made == calls.batched == counted["totals"]["completed"] == counted["totals"]["batched"]
        tags = [batch["metadata"]["llamaduo"] for batch in (await get(url, "/v1/batches"))["data"]]
        assert len(set(tags)) == len(tags) >= 3


async def test_a_cancelled_migrations_batch_is_cancelled_and_how_far_it_was_is_told(
    server: NatsServer, tmp_path: Path
) -> None:
    async with (
        connected(server, tmp_path) as bus,
        emulator(model_name="gpt-4o", batch_ms=1e9) as url,
        serving(*all_services(server, tmp_path)),
    ):
        told: list[Progress] = []

        async def listen() -> None:
            async for progress in bus.watch_progress():
                told.append(progress)

        async def heard() -> bool:
            return any(one.stage == "batch" and one.total == 25 for one in told)

        async def all_cancelled() -> bool:
            batches = (await get(url, "/v1/batches"))["data"]
            return {batch["status"] for batch in batches} == {"cancelled"}

        listening = asyncio.create_task(listen())
        migration = await submit(bus, spec_of(url, service_llm=batched(url), splits=SMALL))
        await until(heard, seconds=60, what="how far a batch is")
        await bus.publish(CancelRequested(migration=migration, command="c-12345678", by="test"))
        await until(all_cancelled, seconds=30, what="no batch under way")
        listening.cancel()


async def kill_during_a_batch(stage: Stage, url: str, wanted: Callable[[str], bool]) -> None:
    """SIGKILL while such a batch is under way, and a new process."""

    async def under_way() -> bool:
        for batch in (await get(url, "/v1/batches"))["data"]:
            if batch["status"] == "in_progress":
                async with (
                    aiohttp.ClientSession() as http,
                    http.get(f"{url}/files/{batch['input_file_id']}/content") as file,
                ):
                    if wanted(await file.text()):
                        return True
        return False

    await until(under_way, seconds=60, what="a batch under way")
    stage.send("synthesizer", signal.SIGKILL)
    stage.start("synthesizer")
