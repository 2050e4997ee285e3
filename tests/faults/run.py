"""One migration under a schedule of faults, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from nats.errors import Error as NatsError

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.errors import describe
from llamaduo.events import EvalFailed, MigrationCompleted
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm import rebought
from tests.faults.checker import violations
from tests.faults.evidence import Evidence, gather
from tests.faults.kinds import ON_DISK, STRIKES, target
from tests.faults.schedule import NATS, Fault
from tests.faults.stage import SERVICES, Stage, staged
from tests.loop.test_loop import spec_of, submit
from tests.support import bus_settings

BUYERS = ("synthesizer", "llm-judge")
SPLITS = {"train": 30, "validation": 12, "test": 100, "holdout": 30}


@dataclass
class Outcome:
    """What a run ended in; `effects` must be the same with faults as without."""

    effects: dict[str, object]
    keys: dict[str, int]
    """idempotency key -> answers the emulator sent, by its own count"""
    listed: set[str]
    """keys that the ledger lists as possibly bought twice"""
    found: Evidence = field(default_factory=Evidence)
    struck: list[Struck] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def spec(emulator_url: str) -> object:
    """A small migration whose verdict needs both evaluators."""
    return spec_of(
        f"{emulator_url}/v1",
        # A call that a kill left open holds up others who ask the same until it must have timed out.
        service_llm={
            "model": "openai:scripted-teacher",
            "base_url": f"{emulator_url}/v1",
            "requests_per_minute": 60_000,
            "timeout_s": 15,
        },
        splits=SPLITS,
        evaluators=["exact-match", "llm-judge"],
        marking={"shard_rows": 20, "failures_wanted": 20},
        synthesis={"rows_per_round": 150, "pairs_per_call": 10},
        recipe={"steps": 10},
        budgets={"calls": 5_000},
    )


def told(faults: Sequence[Fault]) -> str:
    """Faults in words."""
    return "; ".join(str(fault) for fault in faults) or "none"


def effects_of(view: MigrationView) -> dict[str, object]:
    """All of a migration that time and faults may not change."""
    decisions = [d for n in view.rounds if (d := view.decision(n)) is not None]
    return {
        "ended": view.ended.type if view.ended else None,
        "datasets": {n: data.digest for n in view.rounds if (data := view.dataset(n))},
        "adapters": {n: a.adapter.digest for n in view.rounds if (a := view.adapter(n))},
        "verdicts": [(d.round, d.verdict, d.rows) for d in decisions],
        "marks": [json.loads(d.model_dump_json(include={"marks"})) for d in decisions],
        "failing": [[f.row for f in d.failures] for d in decisions if isinstance(d, EvalFailed)],
        "holdout": view.ended.model_dump(mode="json")["holdout"]
        if isinstance(view.ended, MigrationCompleted)
        else None,
    }


def bought_too_often(keys: Mapping[str, int], faults: Sequence[Fault]) -> list[str]:
    """What is wrong where more was bought again than was in flight when those who buy, or the bus, were hit."""
    concurrency = ServiceLLM(model="openai:any").concurrency
    hit = [fault.victim for fault in faults if fault.kind != "duplicate"]
    in_flight = concurrency * sum(len(BUYERS) if victim == NATS else victim in BUYERS for victim in hit)
    again = sum(count - 1 for count in keys.values() if count > 1)
    return [f"{again} calls were bought again, {in_flight} can have been in flight"] if again > in_flight else []


async def play(folder: Path, port: int, faults: Sequence[Fault], *, limit: float = 120) -> Outcome:
    """Run a migration to its end while `faults` strike."""
    began = time.monotonic()
    with staged(folder, port, own_disk=any(fault.kind in ON_DISK for fault in faults)) as stage:
        bus = await Bus.connect(bus_settings(stage.server, folder), "test")
        await topology.bootstrap(bus.js, profile="faults")
        for name in SERVICES:
            stage.start(name)
        migration = await submit(bus, spec(stage.emulator_url))  # type: ignore[arg-type]
        await wait_ready(stage)
        striking = Striking(stage, bus, time.monotonic())
        try:
            async with asyncio.TaskGroup() as group:
                ended = group.create_task(_until_ended(bus, migration, limit))
                strikes = [group.create_task(striking.strike(fault)) for fault in faults]
                ended.add_done_callback(lambda _: striking.over.set())
            outcome = await _outcome(stage, bus, migration)
        except BaseExceptionGroup as failed:
            first = failed.exceptions[0]
            where = await _where(bus)
            await asyncio.to_thread(stage.ask_where)
            raise AssertionError(f"{describe(first)}\nfaults: {told(faults)}\n{where}\n{stage.logs()}") from first
        finally:
            await bus.close()
        outcome.struck = [struck for strike in strikes if (struck := strike.result()) is not None]
        outcome.problems += stage.ended_by_themselves()
        outcome.problems += bought_too_often(outcome.keys, faults)
    outcome.seconds = time.monotonic() - began
    return outcome


@dataclass(frozen=True)
class Struck:
    """A fault that struck, and when it was over (seconds since the epoch)."""

    fault: Fault
    ended: float


@dataclass
class Striking:
    """Faults beside each other, but two of one target after each other."""

    stage: Stage
    bus: Bus
    since: float
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the migration has ended: what has not struck by then is left out."""
    targets: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def strike(self, fault: Fault) -> Struck | None:
        """Wait for its time and strike; None where the migration ended before."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), self.since + fault.after - time.monotonic())
        async with self.targets[target(fault)]:
            if self.over.is_set():
                return None
            await STRIKES[fault.kind](self.stage, self.bus, fault)
            return Struck(fault, time.time())


async def wait_ready(stage: Stage) -> None:
    """Until every service takes messages, so that faults strike a loop and not a start."""
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        for name in stage.processes:
            while not await _is_ready(http, stage.folder / name / "port"):
                await asyncio.sleep(0.05)


async def _is_ready(http: aiohttp.ClientSession, port: Path) -> bool:
    try:
        async with http.get(f"http://127.0.0.1:{port.read_text()}/readyz") as answer:
            return answer.status == 200
    except (OSError, aiohttp.ClientError):
        return False


async def _where(bus: Bus) -> str:
    """How far a run has come that did not end: the newest events, work in hand, what waits at each durable."""
    try:
        found = await bus.js.stream_info(topology.EVENTS)
        lines = []
        for number in range(max(1, found.state.last_seq - 5), found.state.last_seq + 1):
            message = await bus.js.get_msg(topology.EVENTS, number)
            body = json.loads(message.data or b"{}")
            lines.append(f"event {number}: {body['type']} {body['id'][:12]} by {body['source']} at {message.time}")
        work = await bus.bucket("work")
        for key in await work.keys(""):
            entry = await work.get(key)
            if entry is not None and b'"state":"done"' not in entry.value:
                lines.append(f"{key}: {entry.value.decode()[:200]}")
        for info in await bus.js.consumers_info(topology.EVENTS):
            if info.num_pending or info.num_ack_pending:
                lines.append(f"{info.name}: {info.num_pending} wait, {info.num_ack_pending} in hand")
        return "\n".join(lines)
    except (NatsError, TimeoutError, OSError) as error:
        return f"the bus is away: {describe(error)}"


async def _until_ended(bus: Bus, migration: str, limit: float) -> MigrationView:
    view = MigrationView(migration)
    async with asyncio.timeout(limit):
        async for logged in bus.log(follow=True):
            view.add(logged.event)
            if view.ended is not None:
                return view
    raise AssertionError("unreachable")


async def _outcome(stage: Stage, bus: Bus, migration: str) -> Outcome:
    found = await gather(stage.server.url, stage.emulator_url)
    events = [e.event async for e in bus.log(follow=False) if e.event.migration == migration]
    listed = {one.key for one in await rebought(await bus.bucket("ledger"), migration)}
    keys = {key: count["completed"] for key, count in found.emulator.items()}
    return Outcome(effects_of(fold(events)), keys, listed, found, problems=violations(found))


def compare(calm: Outcome, hurt: Outcome) -> list[str]:
    """What faults changed, beyond the calls in flight at a kill."""
    problems = list(hurt.problems)
    for name, value in calm.effects.items():
        if hurt.effects[name] != value:
            problems.append(f"{name}: {hurt.effects[name]} instead of {value}")
    return problems
