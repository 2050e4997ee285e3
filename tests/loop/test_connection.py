"""A connection that is refused or closed for good: the service ends, and its supervisor gets to try again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.bus.mirror import Mirror
from llamaduo.bus.service import GONE, Service
from llamaduo.errors import RetryableError
from llamaduo.events import Event
from tests.support import NatsServer, bus_settings, connected, environment, nats_server, service_settings, until


class GuardedServer(NatsServer):
    """A server that asks for a password, which can be changed."""

    def guard(self, password: str) -> None:
        """Ask for this password from the next start or reload on."""
        plain = self._config.read_text().split("authorization", maxsplit=1)[0]
        self._config.write_text(plain + f'authorization {{ user: "u", password: "{password}" }}\n')

    def reload(self) -> None:
        """Have the running server read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GuardedServer]:
    running = GuardedServer(tmp_path / "nats")
    running.guard("old")
    running.start()
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def judge(server: NatsServer, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A judge as a process of its own; the port of its health endpoints is in the file `port`."""
    env = environment(
        LLAMADUO_NATS_URL=server.url,
        LLAMADUO_NATS_USER="u",
        LLAMADUO_NATS_PASSWORD="old",
        LLAMADUO_PROFILE="faults",
        LLAMADUO_STATE_DIR=str(folder),
        LLAMADUO_PORT_FILE=str(folder / "port"),
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.judge", "--evaluator", "exact-match"], env=env, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


async def ready(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, aiohttp.ClientError):
        port = int((folder / "port").read_text())
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as answer:
            return answer.status == 200
    return False


@pytest.mark.parametrize("how", ["closed by the server", "refused at reconnecting"])
async def test_a_service_that_lost_its_connection_for_good_ends(
    server: GuardedServer, tmp_path: Path, how: str
) -> None:
    """Traps 14, 15: else it spins without yielding, or waits deaf for ever, and its health endpoint stays green."""
    settings = bus_settings(server, tmp_path).model_copy(update={"nats_user": "u", "nats_password": SecretStr("old")})
    bus = await Bus.connect(settings, "test")
    await topology.bootstrap(bus.js, profile="faults")
    await bus.close()
    with judge(server, tmp_path) as process:
        await until(lambda: ready(tmp_path), what="a judge that is ready")
        server.guard("new")
        if how == "closed by the server":
            server.reload()
        else:
            server.kill()
            server.start()
        code = await asyncio.to_thread(process.wait, 30)
        assert code == GONE, (tmp_path / "log").read_text()


async def test_a_bus_that_is_away_while_a_service_opens_only_delays_it(tmp_path: Path) -> None:
    """What opens and what starts the subscribers is tried again."""
    failed: list[Exception] = []
    down = asyncio.Event()
    with nats_server(tmp_path / "nats") as plain:

        async def open_ledger(bus: Bus, _mirror: Mirror) -> None:
            if not failed:
                plain.kill()
                down.set()
            try:
                await bus.bucket("ledger")
            except Exception as error:
                failed.append(error)
                raise

        async def mark(_event: Event, _work: Work) -> list[Event]:
            return []

        service = Service("trainer", service_settings(plain, tmp_path), roles={"trainer": (mark, 1)})
        service.on_open(open_ledger)
        async with connected(plain, tmp_path) as bus:
            serving_it = asyncio.create_task(service.serve())
            await asyncio.wait_for(down.wait(), 20)

            async def seen() -> bool:
                return bool(failed)

            await until(seen)
            plain.start()

            async def opened() -> bool:
                assert not serving_it.done(), serving_it.exception()
                return service._problems == []

            await until(opened, seconds=60)
            assert isinstance(failed[0], RetryableError)
            service.stop()
            await serving_it
            assert await bus.last_seq() == 0
