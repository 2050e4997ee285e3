"""What a settled job costs: our middleware (claim, commit, announce, ack) against a bare nats-py pull and ack."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaduo.bus import topology
from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.events import Event
from tests.simulated import dataset, trained
from tests.support import connected, nats_server, service_settings, serving


async def settling(quick: bool) -> dict[str, Any]:
    """Jobs a second of one process, one at a time; and the ratio to the bare client."""
    jobs = 30 if quick else 300
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        with nats_server(folder / "nats") as server:
            async with connected(server, folder) as bus:
                done = asyncio.Event()
                count = 0

                async def train(_event: Event, _work: Work) -> Sequence[Event]:
                    nonlocal count
                    count += 1
                    if count == jobs:
                        done.set()
                    return [trained(count)]

                for number in range(jobs):
                    await bus.publish(dataset(number))
                service = Service("trainer", service_settings(server, folder), roles={"trainer": (train, 1)})
                began = time.perf_counter()
                async with serving(service):
                    await done.wait()
                    ours = time.perf_counter() - began
                bare = await _bare(bus.js, jobs)
    return {
        "jobs": jobs,
        "settled_per_s": round(jobs / ours, 1),
        "bare_per_s": round(jobs / bare, 1),
        "bare_to_settled": round(ours / bare, 2),
    }


async def _bare(js: Any, jobs: int) -> float:
    """Seconds in which a bare pull consumer takes and acks the same messages one by one."""
    durable = topology.Durable("bare", topology.SERVICES["trainer"].durables[0].events)
    await topology.ensure_durable(js, durable, "faults")
    sub = await js.pull_subscribe_bind(durable="bare", stream=topology.EVENTS)
    began = time.perf_counter()
    for _ in range(jobs):
        for message in await sub.fetch(1, timeout=10):
            await message.ack_sync(timeout=5)
    return time.perf_counter() - began
