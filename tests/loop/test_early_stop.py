"""A clear round is decided early in the real loop too: judge calls as the emulator counted them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from benchmarks.verdict import Cell, measure
from llamaduo.bus.connection import Bus
from llamaduo.bus.work import record_of
from llamaduo.events import (
    CancelRequested,
    EvalScored,
    MigrationCancelled,
    PauseRequested,
    ResponsesRequested,
    WorkWithdrawn,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import build_report
from services.inference.fake_engine import skill_of
from tests.loop.test_loop import all_services, emulator, ended, log_of, spec_of, submit
from tests.support import connected, nats_server, serving, until


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[tuple[Bus, str]]:
    """A bus with all services on it, and the emulator's URL."""
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator() as url, serving(*all_services(server, tmp_path)):
            yield bus, url


@pytest.mark.parametrize(
    ("train", "gate", "verdict"),
    [
        pytest.param(60, 0.32, "passed", id="a sure pass asks no more"),
        pytest.param(30, 0.70, "failed", id="a sure fail asks until there are failures to aim at"),
    ],
)
async def test_a_real_loop_makes_about_as_many_judge_calls_as_the_simulation(
    loop: tuple[Bus, str], train: int, gate: float, verdict: str
) -> None:
    bus, url = loop
    spec = spec_of(
        url,
        gate={"absolute": {"llm-judge.similarity": 100 * gate}},
        evaluators=["llm-judge"],
        splits={"train": train, "validation": 20, "test": 200, "holdout": 25},
        budgets={"rounds": 1},
        promotion="manual",
    )
    migration = await submit(bus, spec)
    view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
    decided = view.decision(0)
    assert decided is not None and decided.verdict == verdict
    asked = [e for e in view.of_type(ResponsesRequested) if e.candidate.key == "round-0" and e.split == "test"]
    assert len(asked) < 8 and max(e.at for e in asked) <= decided.at

    truth = skill_of(train)
    simulated = measure(Cell("absolute", "binary", round(100 * (truth - gate)), gate), 40)
    assert simulated[f"round0_{verdict}"] >= 0.9
    print(f"judge calls: {calls_of_round(view)} in the loop, {simulated['calls']} simulated on average")
    assert calls_of_round(view) <= 1.5 * simulated["calls"]

    async def all_accounted_for() -> bool:
        """Whether the log tells of every call; what was in flight at the end is told of a little later."""
        return await completed(url) == calls_made(fold(await log_of(bus, migration)))

    await until(all_accounted_for, seconds=30, what="every call that the emulator counted in an event")


async def test_what_a_cancel_stops_in_the_middle_is_told_of_call_by_call(tmp_path: Path) -> None:
    """What nobody waits for any more is paid like all else, and stands in the report."""
    with nats_server(tmp_path / "nats") as server:
        async with (
            connected(server, tmp_path) as bus,
            emulator(latency_ms=150) as url,
            serving(*all_services(server, tmp_path)),
        ):
            migration = await submit(bus, spec_of(url, evaluators=["llm-judge"], gate={"parity": {"margin": 3}}))

            async def marking() -> bool:
                """The third shard of answers and the first marks are on their way."""
                return await completed(url) > 90

            await until(marking, seconds=60, what="the first marks")
            await bus.publish(CancelRequested(migration=migration, command="c-12345678"))
            view = await until(lambda: ended(bus, migration), seconds=30, what="the end")
            assert isinstance(view.ended, MigrationCancelled)

            async def all_accounted_for() -> MigrationView | None:
                view = fold(await log_of(bus, migration))
                return view if await completed(url) == build_report(view, datetime.now(UTC)).calls.made else None

            view = await until(all_accounted_for, seconds=30, what="every call that the emulator counted")
            withdrawn = {event.consumer: event.calls.made for event in view.of_type(WorkWithdrawn)}
            assert withdrawn and all(withdrawn.values())


async def test_what_a_pause_put_down_before_a_cancel_is_told_of_too(tmp_path: Path) -> None:
    """Nobody has it in hand when the cancel comes: its record says what it had bought."""
    with nats_server(tmp_path / "nats") as server:
        async with (
            connected(server, tmp_path) as bus,
            emulator(latency_ms=150) as url,
            serving(*all_services(server, tmp_path)),
        ):
            migration = await submit(bus, spec_of(url, evaluators=["llm-judge"], gate={"parity": {"margin": 3}}))

            async def marking() -> bool:
                return await completed(url) > 90

            async def put_down() -> bool:
                work = await bus.bucket("work")
                records = [await record_of(work, key) for key in await work.keys("")]
                bought = [record for record in records if record.state == "free" and record.bought.made]
                return bool(bought) and not any(record.state == "running" for record in records)

            await until(marking, seconds=60, what="the first marks")
            await bus.publish(PauseRequested(migration=migration, command="p-12345678"))
            await until(put_down, seconds=30, what="all work put down, with calls that were bought")
            await bus.publish(CancelRequested(migration=migration, command="c-12345678"))
            await until(lambda: ended(bus, migration), seconds=30, what="the end")

            async def all_accounted_for() -> bool:
                return await completed(url) == calls_made(fold(await log_of(bus, migration)))

            await until(all_accounted_for, seconds=30, what="every call that the emulator counted")
            withdrawn = fold(await log_of(bus, migration)).of_type(WorkWithdrawn)
            assert sum(event.calls.made for event in withdrawn) > 0


async def test_a_judge_without_noise_is_asked_again_for_one_shard_only(loop: tuple[Bus, str]) -> None:
    """The emulator marks an answer always alike: the shard that shows it is bought anew, and no other."""
    bus, url = loop
    spec = spec_of(
        url,
        gate={"absolute": {"llm-judge.similarity": 46}},
        evaluators=["llm-judge"],
        splits={"train": 60, "validation": 20, "test": 200, "holdout": 25},
        marking={"repeats": 3},
        budgets={"rounds": 1},
    )
    migration = await submit(bus, spec)
    view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
    decided = view.decision(0)
    assert decided is not None and decided.verdict == "undecided" and "25 prompts were marked again" in decided.note
    (again,) = [e for e in view.of_type(EvalScored) if e.repeat]
    assert (again.shard, again.repeat, again.calls.made) == (0, 1, 25)


def calls_of_round(view: MigrationView) -> int:
    """Judge calls for round 0's test rows. Two candidates that gave one answer share the call: it counts for each."""
    mine = [e for e in view.of_type(EvalScored) if e.candidate.key == "round-0" and e.split == "test"]
    return sum(e.calls.made + e.calls.from_ledger for e in mine)


def calls_made(view: MigrationView) -> int:
    """All calls of the migration, as its own events count them."""
    return sum(e.calls.made for e in view.events.values() if hasattr(e, "calls"))


async def completed(url: str) -> int:
    """All calls that the emulator answered."""
    async with aiohttp.ClientSession() as http, http.get(f"{url.removesuffix('/v1')}/emulator/ledger") as answer:
        return int((await answer.json())["totals"]["completed"])
