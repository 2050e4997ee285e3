"""`llamaduo evaluator check --subscriber`: a bus of its own, the program under test on it, and the checks."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.cli.nats_server import answers, free_port, nats_program
from llamaduo.cli.processes import Program, Supervisor, tail
from llamaduo.conformance import Check
from llamaduo.conformance_on_bus import examine_subscriber
from llamaduo.errors import UserInputError
from llamaduo.settings import BusSettings

PROFILE = "faults"
"""Short waits, so that a message which was not acked comes again while somebody looks."""
START_S = 20.0


@asynccontextmanager
async def own_bus(supervisor: Supervisor, state: Path) -> AsyncIterator[Bus]:
    """A nats-server on a free port with everything the bus is made of. UserInputError where it does not start."""
    port = free_port()
    await supervisor.start(nats_program(state, port))
    url = f"nats://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    while not await answers(url):
        if time.monotonic() > deadline:
            raise UserInputError("nats-server does not start", hint=tail(state / "logs" / "nats-server.log"))
        await asyncio.sleep(0.05)
    bus = await Bus.connect(BusSettings(nats_url=url, profile=PROFILE, state_dir=state), "conformance")
    try:
        await topology.bootstrap(bus.js, profile=PROFILE)
        yield bus
    finally:
        await bus.close()


async def check_subscriber(name: str, argv: Sequence[str], patience: float) -> AsyncIterator[Check]:
    """What `examine_subscriber` says of this program; behind a failure stands what the program said last.

    The program gets the bus's address as LLAMADUO_NATS_URL. It is ended with the checks.
    """
    with tempfile.TemporaryDirectory(prefix="llamaduo-check-") as folder:
        state, supervisor = Path(folder), Supervisor()
        told = state / "logs" / "subscriber.log"
        try:
            async with own_bus(supervisor, state) as bus:
                await topology.add_evaluator(bus.js, name, profile=PROFILE)
                own = {
                    "LLAMADUO_NATS_URL": bus.settings.nats_url,
                    "LLAMADUO_PROFILE": PROFILE,
                    "LLAMADUO_STATE_DIR": str(state),
                }
                child = await supervisor.start(Program("subscriber", argv, {**os.environ, **own}, told))

                def kill() -> None:
                    if child.pid is not None:
                        os.kill(child.pid, signal.SIGKILL)

                async for one in examine_subscriber(bus, name, kill, patience):
                    yield one if one.state != "failed" else _with_log(one, told)
        finally:
            await supervisor.stop(["subscriber"])
            await supervisor.stop(["nats-server"])


def _with_log(check: Check, log: Path) -> Check:
    said = tail(log, 5)
    return Check(check.name, check.state, f"{check.detail}\nit said last:\n{said}" if said else check.detail)
