"""Each way to the server does what its fault says, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.ways import Ways

SHORT, LONG = 0.2, 20.0


class Echo:
    """A server that says everything back, and can end its connections as a killed process does."""

    def __init__(self) -> None:
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while data := await reader.read(100):
            writer.write(data)

    def reset(self) -> None:
        for writer in self._writers:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@asynccontextmanager
async def echo() -> AsyncIterator[Echo]:
    server = Echo()
    listening = await asyncio.start_server(server.take, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()


@pytest.fixture
def closing() -> Iterator[list[Ways]]:
    made: list[Ways] = []
    yield made
    for ways in made:
        ways.close()


async def connected(ways: Ways, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", ways.port(name))
    assert await said(reader, writer) == b"hello"
    return reader, writer


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, within: float = LONG) -> bytes:
    writer.write(b"hello")
    return await asyncio.wait_for(reader.read(5), within)


async def test_a_cut_ends_one_way_alone_and_at_once_another_connection_can_be_made(closing: list[Ways]) -> None:
    async with echo() as server:
        closing.append(ways := Ways(server.port))
        (a, _), (b, to_b) = await connected(ways, "a"), await connected(ways, "b")
        ways.cut("a")
        with pytest.raises((ConnectionError, AssertionError)):
            assert await asyncio.wait_for(a.read(5), LONG), "the end"
        assert await said(b, to_b) == b"hello"
        await connected(ways, "a")


async def test_what_a_hole_held_goes_on_when_it_is_closed(closing: list[Ways]) -> None:
    async with echo() as server:
        closing.append(ways := Ways(server.port))
        reader, writer = await connected(ways, "a")
        ways.swallow("a")
        with pytest.raises(TimeoutError):
            await said(reader, writer, within=SHORT)
        ways.flow("a")
        assert await asyncio.wait_for(reader.read(5), LONG) == b"hello"


async def test_what_is_late_is_late_in_each_direction(closing: list[Ways]) -> None:
    async with echo() as server:
        closing.append(ways := Ways(server.port))
        reader, writer = await connected(ways, "a")
        ways.delay("a", SHORT)
        began = asyncio.get_running_loop().time()
        assert await said(reader, writer) == b"hello"
        assert asyncio.get_running_loop().time() - began >= 2 * SHORT


async def test_a_connection_that_the_server_resets_ends_for_the_service_too(closing: list[Ways]) -> None:
    async with echo() as server:
        closing.append(ways := Ways(server.port))
        reader, _ = await connected(ways, "a")
        server.reset()
        with pytest.raises((ConnectionError, AssertionError)):
            assert await asyncio.wait_for(reader.read(5), LONG), "the end"
