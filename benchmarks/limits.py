"""How much of a rate limit replicas reach together, whether they ever pass it, and whether a budget holds.

Real processes on a real nats-server, against the emulator, which refuses what is above its limit, or any server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.limit_caller import Orders
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import prices
from llamaduo.service_llm.budget import spent
from tests.support import ROOT, NatsServer, connected, environment, nats_server

SECONDS, QUICK_SECONDS = 66.0, 8.0
LATENCY_MS = 300.0
IN_FLIGHT = 100
BUDGET = 1.0
_START_S = 6.0
_SMALL_RPM = 600


def options(parser: argparse.ArgumentParser) -> None:
    """Options of its own."""
    parser.add_argument("--rpm", type=int, nargs="+", default=[60, 600, 6000], help="limits to keep to")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="processes that share each")
    parser.add_argument("--seconds", type=float, help=f"of each run (default {SECONDS:g}, quick {QUICK_SECONDS:g})")
    parser.add_argument("--service-url", help="another server instead of the emulator, e.g. http://host:8000/v1")
    parser.add_argument("--model", default="openai:scripted-teacher", help="its model, as in a spec")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable that holds its key")


@contextmanager
def emulator(folder: Path, **settings: object) -> Iterator[str]:
    """An emulator process on a free port; its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "port"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.emulator", f"--port-file={port_file}", *flags],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the emulator did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
    finally:
        process.terminate()
        process.wait(20)


@asynccontextmanager
async def caller(orders: Orders) -> AsyncIterator[asyncio.subprocess.Process]:
    """A replica as a process that has its orders."""
    secrets = {name: value for name, value in os.environ.items() if name.startswith(orders.llm.api_key_env)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.limit_caller",
        env=environment(**secrets),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**24,
    )
    assert process.stdin is not None
    process.stdin.write(orders.model_dump_json().encode())
    process.stdin.close()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run_callers(orders: Sequence[Orders]) -> list[dict[str, Any]]:
    """Run these replicas together; all that they told."""

    async def one(order: Orders) -> list[dict[str, Any]]:
        async with caller(order) as process:
            assert process.stdout is not None
            told = await process.stdout.read()
            if await process.wait() != 0:
                raise RuntimeError(f"replica {order.name} failed")
            return [json.loads(line) for line in told.splitlines()]

    return [line for told in await asyncio.gather(*(one(order) for order in orders)) for line in told]


async def ledger_of(url: str) -> dict[str, Any]:
    """The emulator's own count."""
    async with aiohttp.ClientSession() as http, http.get(url.removesuffix("/v1") + "/emulator/ledger") as answer:
        ledger: dict[str, Any] = await answer.json()
        return ledger


def most_in_a_minute(times: Sequence[float]) -> int:
    """The fullest 60 seconds; `times` in order."""
    return max((bisect_right(times, at + 60.0) - n for n, at in enumerate(times)), default=0)


async def _rate(
    server: NatsServer, folder: Path, chosen: argparse.Namespace, rpm: int, replicas: int
) -> dict[str, Any]:
    name = f"rpm{rpm}-x{replicas}"
    with contextlib.ExitStack() as stack:
        url = chosen.service_url or stack.enter_context(emulator(folder / name, rpm=rpm, latency_ms=LATENCY_MS))
        llm = ServiceLLM(
            model=chosen.model,
            base_url=url,
            api_key_env=chosen.api_key_env,
            requests_per_minute=rpm,
            concurrency=max(4, min(128, rpm // 60 * 2 // replicas)),
        )
        begins = time.time() + _START_S
        told = await run_callers(
            [
                Orders(
                    nats_url=server.url,
                    state_dir=folder / name / str(number),
                    name=f"{name}-{number}-{begins:.0f}",
                    migration=name,
                    llm=llm,
                    begins=begins,
                    ends=begins + chosen.seconds,
                )
                for number in range(replicas)
            ]
        )
        arrived = None if chosen.service_url else (await ledger_of(url))["totals"]
    sends = [line for line in told if "began" in line]
    times = sorted(line["began"] for line in sends)
    kinds = Counter(line["kind"] for line in sends)
    reached = 60 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    result = {
        "rpm": rpm,
        "replicas": replicas,
        "sent": len(times),
        "calls_per_minute": round(reached, 1),
        "share": round(reached / rpm, 4),
        "most_in_60_s": most_in_a_minute(times),
        "refused_429": kinds["limited"],
        "failed": sum(count for kind, count in kinds.items() if kind not in ("answered", "limited")),
        "arrived_at_server": arrived and arrived["arrived"],
    }
    print(
        f"{rpm:>6} rpm, {replicas} replicas: {reached:>7.1f} a minute, {100 * reached / rpm:.1f} % of the limit; "
        f"at most {result['most_in_60_s']} in 60 s; {result['refused_429']} refused",
        flush=True,
    )
    return result


async def _budget(server: NatsServer, folder: Path, quick: bool) -> dict[str, Any]:
    """Two replicas with 100 calls in flight together spend one dollar (a tenth, if quick) at gpt-4o's prices."""
    limit = BUDGET / 10 if quick else BUDGET
    with emulator(folder / "budget", latency_ms=1000, model_name="gpt-4o") as url:
        llm = ServiceLLM(model="openai:gpt-4o", base_url=url, requests_per_minute=60_000, concurrency=IN_FLIGHT // 2)
        begins = time.time() + _START_S
        told = await run_callers(
            [
                Orders(
                    nats_url=server.url,
                    state_dir=folder / "budget" / str(number),
                    name=f"budget-{number}",
                    migration="budget",
                    llm=llm,
                    budgets=Budgets(money=limit),
                    begins=begins,
                    ends=begins + 200,
                    prompt_characters=4_000,
                    max_tokens=100,
                )
                for number in range(2)
            ]
        )
        totals = (await ledger_of(url))["totals"]
        async with connected(server, folder / "budget", bootstrap=False) as bus:
            record = await spent(await bus.bucket("budget"), "budget")
    billed = prices.money(llm, totals["prompt_tokens"], totals["completion_tokens"]) or 0.0
    result = {
        "limit": limit,
        "in_flight": IN_FLIGHT,
        "calls": totals["completed"],
        "sent": sum("began" in line for line in told),
        "billed": round(billed, 6),
        "settled": round(record.settled.money, 6),
        "still_held": len(record.held),
        "overspend": round(max(0.0, billed - limit), 6),
    }
    print(
        f"budget of ${limit:.2f}, {IN_FLIGHT} in flight: ${billed:.4f} billed in {result['calls']} calls, "
        f"${result['overspend']:.4f} over",
        flush=True,
    )
    return result


async def limits(chosen: argparse.Namespace) -> dict[str, Any]:
    """Each rate by each number of replicas, then the budget. Small rates need no CPU and run side by side."""
    chosen.seconds = chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        with nats_server(folder / "nats") as server:
            async with connected(server, folder):
                pass
            runs: list[dict[str, Any]] = []
            for rpm in chosen.rpm:
                work = [_rate(server, folder, chosen, rpm, replicas) for replicas in chosen.replicas]
                if rpm <= _SMALL_RPM and not chosen.service_url:
                    runs += await asyncio.gather(*work)
                else:
                    runs += [await one for one in work]
            budget = None if chosen.service_url else await _budget(server, folder, chosen.quick)
    return {
        "server": chosen.service_url or "emulator",
        "seconds": chosen.seconds,
        "smallest_share": min(run["share"] for run in runs),
        "refusals": sum(run["refused_429"] for run in runs),
        "above_limit_in_60_s": sum(run["most_in_60_s"] > run["rpm"] for run in runs),
        "runs": runs,
        "budget": budget,
    }
