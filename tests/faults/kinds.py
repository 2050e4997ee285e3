"""How each kind of fault strikes. Every function returns when its fault is over, and leaves nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from nats.errors import Error as NatsError

from llamaduo.bus.connection import Bus
from llamaduo.bus.topology import EVENTS
from tests.faults import disk
from tests.faults.checker import MARK
from tests.faults.schedule import KINDS, NATS, Fault
from tests.faults.stage import FAKE_TIME, Stage

T = TypeVar("T")


async def kill(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """kill -9, and a start under the same name."""
    await _end_and_start(stage, fault, signal.SIGKILL)


async def leave(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """SIGTERM, and a start once it has left."""
    await _end_and_start(stage, fault, signal.SIGTERM)


async def freeze(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """SIGSTOP, and SIGCONT when its lease has run out."""
    stage.send(fault.victim, signal.SIGSTOP)
    await asyncio.sleep(fault.lasts)
    stage.send(fault.victim, signal.SIGCONT)


async def cut(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """All connections of one service cut, `size` times within the time."""
    times = round(fault.size)
    for number in range(times):
        if number:
            await asyncio.sleep(fault.lasts / (times - 1))
        await asyncio.to_thread(stage.ways.cut, fault.victim)


async def blackhole(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """Nothing gets through between one service and the bus, and nobody is told."""
    await asyncio.to_thread(stage.ways.swallow, fault.victim)
    await asyncio.sleep(fault.lasts)
    if fault.way == "is cut":
        await asyncio.to_thread(stage.ways.cut, fault.victim)
    await asyncio.to_thread(stage.ways.flow, fault.victim)


async def latency(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """Everything between one service and the bus comes `size` seconds later."""
    await asyncio.to_thread(stage.ways.delay, fault.victim, fault.size)
    await asyncio.sleep(fault.lasts)
    await asyncio.to_thread(stage.ways.delay, fault.victim, 0.0)


async def duplicate(_stage: Stage, bus: Bus, fault: Fault) -> None:
    """`size` events of the log are published again, in another order."""
    chance = random.Random(str(fault))
    last = (await _insist(lambda: bus.js.stream_info(EVENTS))).state.last_seq
    numbers = [chance.randint(1, last) for _ in range(round(fault.size))] if last else []
    for number in numbers:
        message = await _insist(lambda number=number: bus.js.get_msg(EVENTS, number))  # type: ignore[misc]
        given = dict(message.headers or {})
        same = fault.way == "same id" or (fault.way == "both" and chance.random() < 0.5)
        headers = {name: value for name, value in given.items() if same or name != "Nats-Msg-Id"} | {MARK: fault.kind}
        subject, body = str(message.subject), message.data or b""
        await _insist(
            lambda subject=subject, body=body, headers=headers: bus.js.publish(  # type: ignore[misc]
                subject, body, timeout=2, stream=EVENTS, headers=headers
            )
        )


async def second_copy(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """Another replica of a service joins; later it is killed, or leaves, or stays."""
    copy = f"{fault.victim}/2"
    stage.start(copy)
    await asyncio.sleep(fault.lasts)
    if fault.way != "stays":
        number = signal.SIGKILL if fault.way == "is killed" else signal.SIGTERM
        await asyncio.to_thread(stage.dismiss, copy, number)


async def clock(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """A service goes on, after a start, with a clock that is `size` seconds off, to the end of the run."""
    stage.clocks[fault.victim] = fault.size
    await _end_and_start(stage, fault, signal.SIGTERM)


async def disk_slow(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """Every write of nats-server waits for `size` seconds, goes through for a twentieth, waits again."""
    assert stage.disk is not None
    until = time.monotonic() + fault.lasts
    while time.monotonic() < until:
        await asyncio.to_thread(stage.disk.stall)
        try:
            await asyncio.sleep(fault.size)
        finally:
            await asyncio.to_thread(stage.disk.go_on)
        await asyncio.sleep(0.05)


async def disk_full(stage: Stage, _bus: Bus, fault: Fault) -> None:
    """No byte of nats-server's disk is free.

    A stream that has met that takes nothing more before the server's next start.
    """
    assert stage.disk is not None
    await asyncio.to_thread(stage.disk.fill)
    await asyncio.sleep(fault.lasts)
    await asyncio.to_thread(stage.disk.free)
    await asyncio.to_thread(stage.send, NATS, signal.SIGKILL)
    await asyncio.to_thread(stage.revive, NATS)


async def stream_full(_stage: Stage, bus: Bus, fault: Fault) -> None:
    """The log may be no larger than it is; later it may."""
    info = await _insist(lambda: bus.js.stream_info(EVENTS))
    room = info.config.max_bytes
    full = dataclasses.replace(info.config, max_bytes=max(1, info.state.bytes))
    await _insist(lambda: bus.js.update_stream(full))
    await asyncio.sleep(fault.lasts)
    await _insist(lambda: bus.js.update_stream(dataclasses.replace(info.config, max_bytes=room)))


Strike = Callable[[Stage, Bus, Fault], Coroutine[Any, Any, None]]

STRIKES: dict[str, Strike] = {
    "kill": kill,
    "freeze": freeze,
    "leave": leave,
    "server-kill": kill,
    "server-freeze": freeze,
    "cut": cut,
    "blackhole": blackhole,
    "latency": latency,
    "duplicate": duplicate,
    "second-copy": second_copy,
    "clock": clock,
    "disk-slow": disk_slow,
    "disk-full": disk_full,
    "stream-full": stream_full,
}
ON_DISK = ("disk-slow", "disk-full")


def left_out() -> dict[str, str]:
    """Kinds that cannot be had on this machine, and why."""
    found: dict[str, str] = {}
    if (why := disk.why_not()) is not None:
        found.update(dict.fromkeys(ON_DISK, why))
    if FAKE_TIME is None:
        found["clock"] = "libfaketime is not installed"
    return found


def target(fault: Fault) -> str:
    """What two faults must not have in hand at once."""
    if fault.kind in ("duplicate", "stream-full", "second-copy"):
        return f"{fault.kind} {fault.victim}"
    return f"way of {fault.victim}" if fault.kind in ("cut", "blackhole", "latency") else fault.victim


async def _end_and_start(stage: Stage, fault: Fault, number: int) -> None:
    await asyncio.to_thread(stage.send, fault.victim, number)
    await asyncio.sleep(fault.lasts)
    await asyncio.to_thread(stage.revive, fault.victim)


async def _insist(ask: Callable[[], Awaitable[T]], seconds: float = 30) -> T:
    """The answer of a bus that other faults may have just struck."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(NatsError, TimeoutError, OSError):
            return await ask()
        assert time.monotonic() < deadline, "the bus stays away from the harness"
        await asyncio.sleep(0.1)


assert set(STRIKES) == set(KINDS)
