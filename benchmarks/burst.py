"""A burst of answered shards through two evaluators with two replicas each: none lost, none twice, memory bounded.

Real processes on a real nats-server. Every shard is published before the first replica starts: 100,000 rows in 4,000
shards of 25, as a migration has them. The verdict runs beside the judges and folds all that they say. Then nats-py
alone does the same traffic with as many processes, on the same server and artifacts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from llamaduo.artifacts import put_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.datasets import Message, ShardRow, dump_rows
from llamaduo.event_parts import Candidate
from llamaduo.events import EvalScored, MigrationRequested, ResponsesGenerated, encode_event
from tests.support import ROOT, NatsServer, bus_settings, environment, nats_server, until

MIGRATION, ROWS = "m-burst", "application/x-ndjson"
EVALUATORS, REPLICAS = ("exact-match", "label-accuracy"), 2
SHARDS, SHARD_ROWS, QUICK_SHARDS = 4_000, 25, 400
BARE_SHARDS = 1_000
"""Of nats-py alone: a rate needs no more."""
MOST_MIB = 300
LABELS = ("billing", "delivery", "refund", "account", "other")
AT_ONCE = 16
SPEC = {
    "name": "burst", "coverage": "tickets.jsonl", "base_model": "someone/small-model",
    "service_llm": {"model": "openai:gpt-4o", "requests_per_minute": 60_000},
    "gate": {"absolute": {"exact-match.exact": 0.7}}, "evaluators": list(EVALUATORS),
}  # fmt: skip


class Processes:
    """Started processes by name, and the most memory that each had."""

    def __init__(self, server: NatsServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *module: str) -> None:
        """One more, with a log of its own."""
        env = environment(
            LLAMADUO_NATS_URL=self._server.url, LLAMADUO_REPLICA=name, LLAMADUO_LOG_LEVEL="WARNING",
            LLAMADUO_STATE_DIR=str(self._folder / name),
        )  # fmt: skip
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        with (self._folder / name / "log").open("ab") as log:
            command = [sys.executable, "-m", *module]
            self._started[name] = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)

    def peaks(self) -> dict[str, float]:
        """MiB of resident memory at the most, by name. AssertionError where a process has ended."""
        ended = [name for name, process in self._started.items() if process.poll() is not None]
        assert not ended, f"{ended} ended: {(self._folder / ended[0] / 'log').read_text()[-2000:]}"
        return {name: peak_mib(process.pid) for name, process in self._started.items()}

    def stop(self) -> None:
        """End all of them."""
        for process in self._started.values():
            process.terminate()
        for process in self._started.values():
            process.wait(30)


def peak_mib(process: int) -> float:
    """The most resident memory that a process has had."""
    line = next(s for s in Path(f"/proc/{process}/status").read_text().splitlines() if s.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


@contextmanager
def processes(server: NatsServer, folder: Path) -> Iterator[Processes]:
    """None yet; ended at the end."""
    every = Processes(server, folder)
    try:
        yield every
    finally:
        every.stop()


def answered(shard: int) -> list[ShardRow]:
    """Rows of a shard: every third answer is wrong."""
    rows = []
    for number in range(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS):
        label = LABELS[number % len(LABELS)]
        answer = label if number % 3 else LABELS[(number + 1) % len(LABELS)]
        prompt = Message(role="user", content=f"Ticket {number}: where does it go? It is about {label} and more.")
        rows.append(ShardRow(row=f"row-{number}", messages=[prompt], reference=label, answers=[answer]))
    return rows


async def asked(bus: Bus, shards: int) -> list[ResponsesGenerated]:
    """The events of the burst; their artifacts are stored, the events are not published yet."""
    store = await bus.artifacts()

    async def one(shard: int) -> ResponsesGenerated:
        return ResponsesGenerated(
            migration=MIGRATION, candidate=Candidate(kind="base"), split="test", shard=shard, of=shards,
            responses=await put_bytes(store, dump_rows(answered(shard)), ROWS), evaluators=list(EVALUATORS),
            rows=SHARD_ROWS,
        )  # fmt: skip

    made: list[ResponsesGenerated] = []
    for start in range(0, shards, AT_ONCE):
        made += await asyncio.gather(*(one(shard) for shard in range(start, min(start + AT_ONCE, shards))))
    return made


async def drained(bus: Bus, stream: str, durables: Sequence[str], seconds: float) -> None:
    """Until these durables have settled all. AssertionError after so many seconds."""

    async def empty() -> bool:
        await asyncio.sleep(0.5)
        infos = [await bus.js.consumer_info(stream, durable) for durable in durables]
        return not any((info.num_pending or 0) + (info.num_ack_pending or 0) for info in infos)

    await until(empty, seconds=seconds, what=f"{durables} have settled all")


async def counted(bus: Bus, shards: int) -> dict[str, Any]:
    """What the raw log says: marks of every row by every evaluator, events and rows that are there twice or not."""
    ids: Counter[str] = Counter()
    marks: Counter[tuple[str, str]] = Counter()
    async for logged in bus.log(topology.subjects_for([EvalScored]), follow=False):
        event = logged.event
        assert isinstance(event, EvalScored)
        ids[event.id] += 1
        marks.update((event.evaluator, mark.row) for mark in event.marks)
    wanted = {(name, f"row-{number}") for name in EVALUATORS for number in range(shards * SHARD_ROWS)}
    return {
        "rows": shards * SHARD_ROWS,
        "marks": marks.total(),
        "lost": len(wanted - set(marks)),
        "twice": sum(n > 1 for n in marks.values()) + sum(n > 1 for n in ids.values()),
        "dead_letters": len(await list_dead(bus)),
    }


async def ours(bus: Bus, every: Processes, events: Sequence[ResponsesGenerated]) -> dict[str, Any]:
    """The burst through the judges."""
    began = time.perf_counter()
    for start in range(0, len(events), AT_ONCE):
        await asyncio.gather(*(bus.publish(event) for event in events[start : start + AT_ONCE]))
    published = time.perf_counter() - began
    every.start("verdict", "services.verdict")
    for name in EVALUATORS:
        for number in range(REPLICAS):
            every.start(f"{name}-{number}", "services.judge", "--evaluator", name)
    durables = [topology.durable_for_evaluator(name).name for name in EVALUATORS]

    async def begun() -> bool:
        infos = [await bus.js.consumer_info(topology.EVENTS, durable) for durable in durables]
        return all(info.delivered is not None and info.delivered.consumer_seq >= REPLICAS for info in infos)

    await until(begun, seconds=120, what="every evaluator has begun")
    began = time.perf_counter()
    await drained(bus, topology.EVENTS, durables, 1_800)
    seconds = time.perf_counter() - began
    await drained(bus, topology.EVENTS, ["verdict"], 1_800)
    counts = await counted(bus, len(events))
    return {
        **counts,
        "published_per_s": round(len(events) / published, 1),
        "seconds": round(seconds, 1),
        "shards_per_s": round(len(EVALUATORS) * len(events) / seconds, 1),
        "rows_per_s": round(counts["rows"] / seconds, 1),
        "peak_mib": every.peaks(),
    }


async def bare(
    bus: Bus, every: Processes, server: NatsServer, events: Sequence[ResponsesGenerated], result_bytes: int
) -> dict[str, Any]:
    """The same traffic by nats-py alone."""
    stream, durables = "BARE", [f"bare-{name}" for name in EVALUATORS]
    await bus.js.add_stream(
        StreamConfig(
            name=stream,
            subjects=["BARE.*"],
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            duplicate_window=topology.DAY_S,
        )
    )
    for durable in durables:
        await bus.js.add_consumer(
            stream,
            ConsumerConfig(
                durable_name=durable, ack_policy=AckPolicy.EXPLICIT, ack_wait=60, filter_subject="BARE.in"
            ),
        )
    for event in events:
        await bus.js.publish("BARE.in", encode_event(event), headers={"Nats-Msg-Id": event.id})
    for durable in durables:
        for number in range(REPLICAS):
            own = (server.url, durable, topology.ARTIFACTS, stream, str(result_bytes))
            every.start(f"{durable}-{number}", "benchmarks.bare_evaluator", *own)

    async def begun() -> bool:
        infos = [await bus.js.consumer_info(stream, durable) for durable in durables]
        return all(info.delivered is not None and info.delivered.consumer_seq >= REPLICAS for info in infos)

    await until(begun, seconds=120, what="nats-py alone has begun")
    began = time.perf_counter()
    await drained(bus, stream, durables, 1_800)
    seconds = time.perf_counter() - began
    told = (await bus.js.stream_info(stream, subjects_filter="BARE.out")).state.subjects or {}
    assert told.get("BARE.out") == len(durables) * len(events), told
    return {"shards": len(events), "seconds": round(seconds, 1), "shards_per_s": round(2 * len(events) / seconds, 1)}


async def burst(quick: bool) -> dict[str, Any]:
    """Ours, then nats-py alone."""
    shards = QUICK_SHARDS if quick else SHARDS
    with tempfile.TemporaryDirectory() as temp, nats_server(Path(temp) / "nats") as server:
        folder = Path(temp)
        bus = await Bus.connect(bus_settings(server, folder), "benchmark")
        try:
            await topology.bootstrap(bus.js)
            await topology.add_evaluator(bus.js, EVALUATORS[1], profile="default", backfill=True)
            nothing = await put_bytes(await bus.artifacts(), b"", ROWS)
            await bus.publish(MigrationRequested(migration=MIGRATION, spec=SPEC, coverage=nothing))
            events = await asked(bus, shards)
            with processes(server, folder / "ours") as every:
                told = await ours(bus, every, events)
            print(json.dumps(told), flush=True)
            last = await bus.js.get_last_msg(topology.EVENTS, f"eval.scored.{EVALUATORS[0]}")
            with processes(server, folder / "bare") as every:
                alone = await bare(bus, every, server, events[:BARE_SHARDS], len(last.data or b""))
        finally:
            with contextlib.suppress(Exception):
                await bus.close()
    assert told["lost"] == told["twice"] == told["dead_letters"] == 0, told
    return {
        **told,
        "shard_rows": SHARD_ROWS,
        "most_mib": max(told["peak_mib"].values()),
        "within_memory": max(told["peak_mib"].values()) < MOST_MIB,
        "bare": alone,
        "bare_to_ours": round(alone["shards_per_s"] / told["shards_per_s"], 2),
    }
