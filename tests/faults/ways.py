"""The ways to nats-server, one a service, each of which can be cut, swallow or delay by itself.

TCP promises every byte in order or an end, so a hole in the way is a pause: what it held goes on when it is closed,
or is lost together with its connection. All ways run in one thread with an event loop of its own, so that a busy
harness delays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class _Way:
    flowing: asyncio.Event
    delay: float = 0.0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    listening: asyncio.Server | None = None


class Ways:
    """Proxies on loopback to one port, by the name of who uses them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._ways: dict[str, _Way] = {}
        self._ports: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ways to nats", daemon=True)
        self._thread.start()

    def port(self, name: str) -> int:
        """Where this name's way begins; made the first time it is asked for."""
        if name not in self._ports:
            self._ports[name] = asyncio.run_coroutine_threadsafe(self._open(name), self._loop).result(10)
        return self._ports[name]

    def cut(self, name: str) -> None:
        """Abort all connections of this way; what was on it is lost. New ones can be made at once."""
        self._call(lambda: _cut(self._ways[name]))

    def swallow(self, name: str) -> None:
        """Let nothing through in either direction; connections stay, and new ones are taken."""
        self._call(self._ways[name].flowing.clear)

    def flow(self, name: str) -> None:
        """Let through what was held, and all that comes."""
        self._call(self._ways[name].flowing.set)

    def delay(self, name: str, seconds: float) -> None:
        """Let everything through so much later, in each direction."""
        self._call(lambda: setattr(self._ways[name], "delay", seconds))

    def close(self) -> None:
        """End all ways and the thread."""

        async def end() -> None:
            for way in self._ways.values():
                if way.listening is not None:
                    way.listening.close()
                _cut(way)
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, step: Callable[[], None]) -> None:
        async def inside() -> None:
            step()

        asyncio.run_coroutine_threadsafe(inside(), self._loop).result(10)

    async def _open(self, name: str) -> int:
        way = _Way(asyncio.Event())
        way.flowing.set()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # The streams of Python 3.11 report a cancelled connection as an error.
            with contextlib.suppress(asyncio.CancelledError):
                await self._carry(way, reader, writer)

        way.listening = await asyncio.start_server(take, "127.0.0.1", 0)
        self._ways[name] = way
        return int(way.listening.sockets[0].getsockname()[1])

    async def _carry(self, way: _Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end is gone: then the other one is, too."""
        ends = {writer}
        way.writers.add(writer)
        pumps: list[asyncio.Task[None]] = []
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            ends.add(to_server)
            way.writers.add(to_server)
            pumps = [asyncio.create_task(_pump(way, *pair)) for pair in ((reader, to_server), (from_server, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is down: the service sees its connection end, as it would without us
        finally:
            for pump in pumps:
                pump.cancel()
            for end in ends:
                end.transport.abort()
            way.writers -= ends


def _cut(way: _Way) -> None:
    for writer in list(way.writers):
        writer.transport.abort()


async def _pump(way: _Way, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """From one end to the other, in order, each piece as late as the way is slow now."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def read() -> None:
        with contextlib.suppress(OSError):  # a process that is killed resets a connection it had not read out
            while data := await source.read(65536):
                await pieces.put((loop.time() + way.delay, data))
        await pieces.put((loop.time() + way.delay, b""))

    reading = asyncio.create_task(read())
    try:
        with contextlib.suppress(OSError):
            while True:
                due, data = await pieces.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await way.flowing.wait()
                if not data:
                    return
                target.write(data)
                await target.drain()
    finally:
        reading.cancel()
