"""What the gateway adds to an answer, with capture on, and what becomes of traffic when the service LLM is cut.

Client, upstreams, gateway and nats-server are processes of their own. Both ways are asked in turns, so that a machine
that gets slower makes both slower.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

from pydantic import TypeAdapter

from benchmarks.gateway_caller import Asked, CallerOrders
from tests.gateway_servers import gateway_process
from tests.support import ROOT, connected, environment, free_port, nats_server, until

PER_SECOND = 200.0
LATENCY_MS = 20.0
TURNS, TURN_REQUESTS = 5, 2000
CUT_REQUESTS = 10_000
OPENS_AFTER = 5  # failures in a row
_LIST = TypeAdapter(list[Asked])


class Upstream:
    """A server of `gateway_upstream` that can be killed and started again on its port."""

    def __init__(self, name: str) -> None:
        self.name, self.port = name, free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        command = ["-m", "benchmarks.gateway_upstream", self.name, str(self.port), str(LATENCY_MS)]
        self._process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment(), cwd=ROOT)

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await until(listens, seconds=60, what=f"{self.name} that listens")

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def _upstreams(*names: str) -> AsyncIterator[list[Upstream]]:
    made = [Upstream(name) for name in names]
    try:
        await asyncio.gather(*(one.start() for one in made))
        yield made
    finally:
        for one in made:
            await one.kill()


class Caller:
    """A process that asks; `began` once it does, and `done` gives what came of it."""

    def __init__(self, orders: CallerOrders) -> None:
        self._orders = orders
        self._process: asyncio.subprocess.Process | None = None

    async def began(self) -> Caller:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.gateway_caller",
            env=environment(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**26,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(self._orders.model_dump_json().encode())
        self._process.stdin.close()
        await self._process.stdout.readline()
        return self

    async def done(self) -> list[Asked]:
        assert self._process is not None and self._process.stdout is not None
        told = await self._process.stdout.read()
        if await self._process.wait() != 0:
            raise RuntimeError("the caller failed")
        return _LIST.validate_json(told)


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least two values."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def after_the_cut(asked: Sequence[Asked], cut: float, back: float) -> dict[str, Any]:
    """What became of requests when the service LLM was gone from `cut` on, and there again from `back` on.

    The circuit is taken for open once so many requests have been answered by the local model: each of them was first
    refused by the service LLM.
    """
    local = sorted(one.at + one.seconds for one in asked if one.served_by == "local" and one.status == 200)
    opened = local[OPENS_AFTER - 1] if len(local) >= OPENS_AFTER else None
    again = [one.at for one in asked if one.at > back and one.served_by == "service" and one.status == 200]
    failed = [one for one in asked if one.status != 200]
    return {
        "requests": len(asked),
        "failed": len(failed),
        "failed_after_open": None if opened is None else sum(one.at > opened for one in failed),
        "open_after_s": None if opened is None else round(opened - cut, 3),
        "answered_locally": len(local),
        "back_after_s": round(min(again) - back, 3) if again else None,
    }


def _orders(url: str, requests: int, per_second: float) -> CallerOrders:
    return CallerOrders(url=url, model="triage", per_second=per_second, requests=requests)


async def _overhead(folder: Path, nats_url: str, quick: bool, per_second: float) -> dict[str, Any]:
    turns, requests = (2, TURN_REQUESTS // 10) if quick else (TURNS, TURN_REQUESTS)
    seconds: dict[str, list[float]] = {"direct": [], "gateway": []}
    failed = 0
    async with _upstreams("service") as [service]:
        tree = {"service": {"base_url": service.url}, "aliases": {"triage": {"mode": "capture"}}}
        settings = {"LLAMADUO_NATS_URL": nats_url, "LLAMADUO_GATEWAY_SEGMENT_S": "5"}
        async with gateway_process(folder, tree, **settings) as gateway:
            for url in (service.url, gateway.url):
                await (await Caller(_orders(url, requests // 10, per_second)).began()).done()
            for turn in range(turns):
                for way, url in (("direct", service.url), ("gateway", gateway.url)):
                    asked = await (await Caller(_orders(url, requests, per_second)).began()).done()
                    failed += sum(one.status != 200 for one in asked)
                    seconds[way] += [one.seconds for one in asked]
                    p50, p99 = (1000 * percentile([one.seconds for one in asked], p) for p in (50, 99))
                    print(f"turn {turn}: {way:>7}: p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)
    result: dict[str, Any] = {"asked_each_way": turns * requests, "failed": failed}
    for percent in (50, 99):
        direct, through = (1000 * percentile(seconds[way], percent) for way in ("direct", "gateway"))
        result |= {
            f"direct_p{percent}_ms": round(direct, 3),
            f"gateway_p{percent}_ms": round(through, 3),
            f"added_p{percent}_ms": round(through - direct, 3),
        }
    return result


async def _cut(folder: Path, nats_url: str, quick: bool, per_second: float) -> dict[str, Any]:
    """The service LLM is killed after a third of all requests and is there again after two thirds."""
    requests = CUT_REQUESTS // 20 if quick else CUT_REQUESTS
    async with _upstreams("service", "local") as [service, local]:
        triage = {"mode": "capture", "local": {"base_url": local.url, "model": "m-1-r1"}}
        tree = {"service": {"base_url": service.url}, "aliases": {"triage": triage}}
        async with gateway_process(folder, tree, LLAMADUO_NATS_URL=nats_url) as gateway:
            caller = await Caller(_orders(gateway.url, requests, per_second)).began()
            await asyncio.sleep(requests / per_second / 3)
            await service.kill()
            cut = time.time()
            await asyncio.sleep(requests / per_second / 3)
            await service.start()
            back = time.time()
            asked = await caller.done()
    return after_the_cut(asked, cut, back)


async def gateway(quick: bool) -> dict[str, Any]:
    """What it adds, then the cut."""
    per_second = PER_SECOND / 10 if quick else PER_SECOND
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        with nats_server(folder / "nats") as server:
            async with connected(server, folder):
                pass
            overhead = await _overhead(folder / "overhead", server.url, quick, per_second)
            cut = await _cut(folder / "cut", server.url, quick, per_second)
    print(
        f"added at {per_second:g} requests/s: p50 {overhead['added_p50_ms']} ms, p99 {overhead['added_p99_ms']} ms; "
        f"service LLM cut: {cut['failed']} of {cut['requests']} failed, {cut['failed_after_open']} after the circuit "
        f"opened; the service LLM answers again {cut['back_after_s']} s after it is back",
        flush=True,
    )
    return {
        "per_second": per_second,
        "upstream_ms": LATENCY_MS,
        "added_p50_ms": overhead["added_p50_ms"],
        "added_p99_ms": overhead["added_p99_ms"],
        "failed_after_open": cut["failed_after_open"],
        "overhead": overhead,
        "cut": cut,
    }
