"""Base and adapter requests never share a batch, and neither kind waits for ever."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from services.inference.phase_gate import Phase, PhaseGate
from services.inference.vllm_client import VllmClient, wait_until_idle


class Batch:
    """Counts who is under way, and what mixed."""

    def __init__(self) -> None:
        self.now: dict[Phase, int] = {"base": 0, "adapter": 0}
        self.most = 0
        self.settled = 0
        self.mixed = False

    async def settle(self) -> None:
        await asyncio.sleep(0)
        self.mixed = self.mixed or any(self.now.values())
        self.settled += 1

    async def ask(self, gate: PhaseGate, phase: Phase, turns: int) -> None:
        async with gate.hold(phase):
            self.now[phase] += 1
            self.mixed = self.mixed or all(self.now.values())
            self.most = max(self.most, sum(self.now.values()))
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                self.now[phase] -= 1


@pytest.mark.parametrize("seed", range(20))
async def test_kinds_never_mix_whatever_is_cancelled(seed: int) -> None:
    source = random.Random(seed)
    batch = Batch()
    gate = PhaseGate(batch.settle)
    tasks = []
    for _ in range(60):
        phase: Phase = source.choice(["base", "adapter"])
        tasks.append(asyncio.create_task(batch.ask(gate, phase, source.randrange(6))))
        for _ in range(source.randrange(3)):
            await asyncio.sleep(0)
        if source.random() < 0.3:
            source.choice(tasks).cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not batch.mixed
    assert batch.now == {"base": 0, "adapter": 0}
    # Nothing was left locked behind.
    async with asyncio.timeout(5):
        await batch.ask(gate, "base", 1)
        await batch.ask(gate, "adapter", 1)


async def test_requests_of_one_kind_run_side_by_side() -> None:
    batch = Batch()
    gate = PhaseGate(batch.settle)
    await asyncio.gather(*(batch.ask(gate, "adapter", 5) for _ in range(8)))
    assert batch.most == 8


async def test_without_turns_kinds_mix() -> None:
    batch = Batch()
    gate = PhaseGate(batch.settle, enabled=False)
    await asyncio.gather(batch.ask(gate, "adapter", 5), batch.ask(gate, "base", 5))
    assert batch.mixed


async def test_a_steady_stream_of_one_kind_does_not_starve_the_other() -> None:
    batch = Batch()
    gate = PhaseGate(batch.settle)
    enough = asyncio.Event()

    async def stream() -> None:
        while not enough.is_set():
            await batch.ask(gate, "adapter", 3)

    streams = [asyncio.create_task(stream()) for _ in range(4)]
    async with asyncio.timeout(5):
        await batch.ask(gate, "base", 1)
        enough.set()
        await asyncio.gather(*streams)


async def test_a_request_that_left_early_is_waited_for_before_the_kind_changes() -> None:
    batch = Batch()
    gate = PhaseGate(batch.settle)
    asked = asyncio.create_task(batch.ask(gate, "base", 10**9))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await batch.ask(gate, "base", 1)
    assert batch.settled == 0
    await batch.ask(gate, "adapter", 1)
    assert batch.settled == 1
    await batch.ask(gate, "base", 1)
    assert batch.settled == 1


async def test_what_cannot_be_settled_keeps_nobody_waiting_for_ever() -> None:
    """The server was killed while a request of one kind was under way; the other kind has its turn all the same."""

    async def settle() -> None:
        raise OSError("the server is gone")

    batch, gate = Batch(), PhaseGate(settle)

    async def broken() -> None:
        async with gate.hold("base"):
            raise OSError("the server is gone")

    with pytest.raises(OSError, match="is gone"):
        await broken()
    async with asyncio.timeout(5):
        await batch.ask(gate, "adapter", 1)
        await batch.ask(gate, "base", 1)


async def test_a_server_that_is_gone_has_settled(tmp_path: Path) -> None:
    client = VllmClient("http://vllm", socket=tmp_path / "nobody.sock", timeout_s=5)
    try:
        async with asyncio.timeout(10):
            await wait_until_idle(client)
    finally:
        await client.close()
