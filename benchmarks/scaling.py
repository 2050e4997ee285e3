"""How much more judges and inference get done with more replicas, and whether they share without doubling.

Real processes on a real nats-server. Judges: the LLM judge against an emulator that answers after a second, one call
at a time per replica. Inference: an engine that is nothing but waiting time. Both get all their shards at once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.limits import emulator, ledger_of
from benchmarks.system import TICKETS
from llamaduo.artifacts import put_bytes
from llamaduo.bus.connection import Bus
from llamaduo.bus.topology import EVENTS
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Row, ShardRow, dump_rows
from llamaduo.event_parts import ArtifactRef, Candidate
from llamaduo.events import EvalScored, MigrationRequested, ResponsesGenerated, ResponsesRequested
from tests.support import ROOT, NatsServer, connected, environment, nats_server, until

MIGRATION = "m-scaling"
LATENCY_S = 1.0
SHARDS, SHARD_ROWS = 16, 4
QUICK_SHARDS = 8
ENGINE_SHARDS, ENGINE_SHARD_ROWS, PROMPT_S = 40, 20, 0.05
QUICK_ENGINE_SHARDS = 8
ROWS = "application/x-ndjson"
_LONGEST_S = 300
Result = TypeVar("Result", EvalScored, ResponsesGenerated)


@contextmanager
def replicas(server: NatsServer, folder: Path, module: Sequence[str], count: int, **own: str) -> Iterator[list[str]]:
    """So many processes of one service; their names."""
    names = [f"replica-{number}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        for name in names:
            (folder / name).mkdir(parents=True)
            env = environment(
                LLAMADUO_NATS_URL=server.url,
                LLAMADUO_PROFILE="faults",
                LLAMADUO_REPLICA=name,
                LLAMADUO_STATE_DIR=str(folder / name),
                LLAMADUO_LOG_LEVEL="WARNING",
                OPENAI_API_KEY="sk-emulated",
                **own,
            )
            process = subprocess.Popen([sys.executable, "-m", *module], env=env, cwd=ROOT)
            stack.callback(process.wait, 25)
            stack.callback(process.terminate)
        yield names


@asynccontextmanager
async def bus_with_migration(folder: Path, spec: dict[str, Any]) -> AsyncIterator[tuple[NatsServer, Bus]]:
    """A server and its bus, where a migration is known and nobody but the benchmark asks for work."""
    with nats_server(folder / "nats") as server:
        async with connected(server, folder) as bus:
            nothing = await put_bytes(await bus.artifacts(), b"", ROWS)
            await bus.publish(MigrationRequested(migration=MIGRATION, spec=spec, coverage=nothing))
            yield server, bus


def spec_of(url: str) -> dict[str, Any]:
    """One call at a time per replica."""
    return {
        "name": "scaling",
        "coverage": "tickets.jsonl",
        "base_model": "someone/small-model",
        "service_llm": {
            "model": "openai:scripted-teacher",
            "base_url": url,
            "requests_per_minute": 60_000,
            "concurrency": 1,
        },
        "gate": {"absolute": {"llm-judge.similarity": 70}},
        "evaluators": ["llm-judge"],
    }


async def all_wait(bus: Bus, durable: str, pulls: int) -> None:
    """Until every replica asks for messages: processes start at different speeds."""

    async def waiting() -> bool:
        return ((await bus.js.consumer_info(EVENTS, durable)).num_waiting or 0) >= pulls

    await until(waiting, seconds=90, what=f"{pulls} pulls on {durable}")


async def results_of(bus: Bus, kind: type[Result], shards: int) -> list[Result]:
    """The results of all shards, once they are there. AssertionError where they stay away."""

    async def there() -> list[Result] | None:
        found = [e.event async for e in bus.log(follow=False) if isinstance(e.event, kind)]
        return found if len({one.shard for one in found}) == shards else None

    return await until(there, seconds=_LONGEST_S, what=f"{shards} shards")


def shared(results: Sequence[Result], rows: int) -> dict[str, Any]:
    """Rows a second from the first job's start to the last one's end, and who did how many shards."""
    spans = [span for one in results for span in one.work]
    seconds = (max(span.ended for span in spans) - min(span.began for span in spans)).total_seconds()
    return {
        "rows_per_s": round(rows / seconds, 3),
        "seconds": round(seconds, 2),
        "shards_by_replica": dict(sorted(Counter(one.source for one in results).items())),
        "events_twice": len(results) - len({one.id for one in results}),
    }


async def judges(folder: Path, rows: Sequence[Row], count: int, shards: int) -> dict[str, Any]:
    """Marks of all shards by so many judges."""
    with emulator(folder / "emulator", latency_ms=1000 * LATENCY_S) as url:
        async with bus_with_migration(folder, spec_of(url)) as (server, bus):
            with replicas(server, folder / "judge", ["services.judge", "--evaluator", "llm-judge"], count):
                await all_wait(bus, "evaluator-llm-judge", count)
                store = await bus.artifacts()
                for shard in range(shards):
                    mine = rows[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
                    answered = [
                        # No two alike: equal answers would share a call.
                        ShardRow(row=r.id, messages=r.prompt, reference=r.answer, answers=[f"{r.answer} {r.id}"])
                        for r in mine
                    ]
                    await bus.publish(
                        ResponsesGenerated(
                            migration=MIGRATION,
                            candidate=Candidate(kind="base"),
                            split="test",
                            shard=shard,
                            of=shards,
                            responses=await put_bytes(store, dump_rows(answered), ROWS),
                            evaluators=["llm-judge"],
                            rows=len(answered),
                        )
                    )
                scored = await results_of(bus, EvalScored, shards)
        calls = Counter({key: int(one["completed"]) for key, one in (await ledger_of(url))["keys"].items()})
    marked = Counter(mark.row for one in scored for mark in one.marks if mark.metric == "similarity")
    return {
        "judges": count,
        **shared(scored, shards * SHARD_ROWS),
        "rows_marked": len(marked),
        "rows_marked_twice": sum(n > 1 for n in marked.values()),
        "calls": calls.total(),
        "calls_twice": sum(n > 1 for n in calls.values()),
    }


async def engines(folder: Path, rows: Sequence[Row], count: int, shards: int) -> dict[str, Any]:
    """Answers to all shards by so many inference replicas, whose engine only waits."""
    spec = spec_of("http://127.0.0.1:9/v1")
    own = {"LLAMADUO_INFERENCE_ENGINE": "fake", "LLAMADUO_FAKE_DELAY_S": str(PROMPT_S)}
    async with bus_with_migration(folder, spec) as (server, bus):
        with replicas(server, folder / "inference", ["services.inference"], count, **own):
            await all_wait(bus, "inference", count)
            split: ArtifactRef = await put_bytes(
                await bus.artifacts(), dump_rows(rows[: shards * ENGINE_SHARD_ROWS]), ROWS
            )
            for shard in range(shards):
                await bus.publish(
                    ResponsesRequested(
                        migration=MIGRATION,
                        candidate=Candidate(kind="base"),
                        split="test",
                        shard=shard,
                        of=shards,
                        rows=split,
                        size=ENGINE_SHARD_ROWS,
                    )
                )
            answered = await results_of(bus, ResponsesGenerated, shards)
    return {"inference": count, **shared(answered, shards * ENGINE_SHARD_ROWS)}


async def scaling(quick: bool) -> dict[str, Any]:
    """1, 2 and 4 judges, then 1 and 2 inference replicas."""
    rows = read_coverage(TICKETS)
    shards, engine_shards = (QUICK_SHARDS, QUICK_ENGINE_SHARDS) if quick else (SHARDS, ENGINE_SHARDS)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temp:
        for count in (1, 2, 4):
            lines.append(await judges(Path(temp) / f"judges-{count}", rows, count, shards))
            print(lines[-1], flush=True)
        for count in (1, 2):
            lines.append(await engines(Path(temp) / f"inference-{count}", rows, count, engine_shards))
            print(lines[-1], flush=True)
    speed = [line["rows_per_s"] for line in lines]
    return {
        "judges_2_to_1": round(speed[1] / speed[0], 2),
        "judges_4_to_1": round(speed[2] / speed[0], 2),
        "inference_2_to_1": round(speed[4] / speed[3], 2),
        "doubled": sum(line["events_twice"] + line.get("rows_marked_twice", 0) for line in lines),
        "latency_s": LATENCY_S,
        "runs": lines,
    }
