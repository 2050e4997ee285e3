"""How full the log is, for `llamaduo doctor`."""

from __future__ import annotations

import asyncio

from llamaduo.cli.doctor import Finding, Machine
from llamaduo.cli.nats_server import answers
from llamaduo.cli.state import NATS_VARIABLE, nats_url, read_note
from llamaduo.errors import LlamaDuoError

NEARLY_FULL = 0.9
AN_EVENT = 64 * 1024
"""Bytes of a large one: less room than that counts as none."""
MIB = 1024**2


def log_room(machine: Machine) -> Finding:
    """Room in the log, where one is up and has a limit."""
    if not machine.environment.get(NATS_VARIABLE) and read_note(machine.state) is None:
        return Finding("log", "ok", "no bus runs here: not looked at")
    url = machine.environment.get(NATS_VARIABLE) or nats_url(machine.state)
    try:
        used, limit = asyncio.run(_filled(url))
    except (LlamaDuoError, OSError) as error:
        return Finding("log", "want", f"cannot be looked at: {error}", "llamaduo up, or name the bus with --nats")
    if not limit:
        return Finding("log", "ok", f"{used / MIB:.1f} MiB, no limit but the disk")
    told = f"{used / MIB:.1f} of {limit / MIB:.1f} MiB"
    mend = f"llamaduo bootstrap --max-bytes {2 * limit}"
    if used + AN_EVENT >= limit:
        return Finding("log", "need", f"full: {told}; services wait", mend)
    if used >= NEARLY_FULL * limit:
        return Finding("log", "want", f"nearly full: {told}", mend)
    return Finding("log", "ok", told)


async def _filled(url: str) -> tuple[int, int]:
    """Bytes in the log, and its limit; 0: none."""
    from llamaduo.bus import topology
    from llamaduo.bus.connection import Bus
    from llamaduo.settings import BusSettings, read_settings

    if not any([await answers(part.strip()) for part in url.split(",")]):
        raise LlamaDuoError(f"no bus answers at {url.rpartition('@')[2]}")
    bus = await Bus.connect(read_settings(BusSettings, nats_url=url), "operator", wait=False)
    try:
        size = await bus.stream_size(topology.EVENTS)
        return size.size, size.limit
    finally:
        await bus.close()
