"""Artifacts: named by their digest, checked on read, streamed both ways."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import ArtifactStore, ObjectStoreArtifacts, put_bytes, read_bytes
from llamaduo.errors import ArtifactCorrupt
from llamaduo.event_parts import ArtifactRef
from tests.support import NatsServer, connected, environment, nats_server


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture(params=["jetstream", "folder"])
async def store(request: Any, server: NatsServer, tmp_path: Path) -> AsyncIterator[ArtifactStore]:
    if request.param == "folder":
        yield ObjectStoreArtifacts(f"file://{tmp_path / 'artifacts'}")
        return
    async with connected(server, tmp_path) as bus:
        yield await bus.artifacts()


async def test_what_was_put_is_read_back_and_putting_it_again_is_the_same(store: ArtifactStore) -> None:
    one = await put_bytes(store, b"some rows\n", "application/x-ndjson")
    two = await put_bytes(store, b"some rows\n", "application/x-ndjson")
    assert one == two and one.size == 10
    assert await read_bytes(store, one) == b"some rows\n"
    empty = await put_bytes(store, b"", "text/plain")
    assert await read_bytes(store, empty) == b""


async def test_a_wrong_digest_size_or_address_is_corrupt_and_leaves_no_file(
    store: ArtifactStore, tmp_path: Path
) -> None:
    ref = await put_bytes(store, b"right", "text/plain")
    target = tmp_path / "out" / "file"
    wrong = [
        ref.model_copy(update={"sha256": "0" * 64}),
        ref.model_copy(update={"size": 4}),
        ref.model_copy(update={"uri": ref.uri[:-1] + ("0" if ref.uri[-1] != "0" else "1")}),
        ArtifactRef(uri="ftp://elsewhere/x", sha256=ref.sha256, size=5),
    ]
    for bad in wrong:
        with pytest.raises(ArtifactCorrupt):
            await store.fetch(bad, target)
        assert not target.exists() and not list(target.parent.glob(".fetch-*"))


MOVE = """
import asyncio, os, resource, sys
from pathlib import Path

from llamaduo.artifacts import ObjectStoreArtifacts
from llamaduo.bus.connection import Bus
from llamaduo.settings import BusSettings

async def main(kind, url, folder, megabytes):
    big = folder / "big"
    with big.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1024 * 1024))
    bus = None
    if kind == "folder":
        store = ObjectStoreArtifacts(f"file://{folder / 'store'}")
    else:
        bus = await Bus.connect(BusSettings(nats_url=url, profile="faults", state_dir=folder), "test", wait=True)
        store = await bus.artifacts()
    ref = await store.put_file(big, "application/octet-stream")
    await store.fetch(ref, folder / "copy")
    if bus is not None:
        await bus.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
"""


@pytest.mark.parametrize("kind", ["jetstream", "folder"])
async def test_memory_does_not_grow_with_the_size_of_what_is_moved(
    kind: str, server: NatsServer, tmp_path: Path
) -> None:
    """Each size is moved by a process of its own, so that its peak holds nothing of other tests."""
    async with connected(server, tmp_path):
        peaks = {}
        for megabytes in (32, 256):
            folder = tmp_path / f"of-{megabytes}"
            folder.mkdir()
            command = [sys.executable, "-c", MOVE, kind, server.url, str(folder), str(megabytes)]
            child = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=asyncio.subprocess.PIPE)
            out, _ = await child.communicate()
            assert child.returncode == 0
            peaks[megabytes] = int(out)
    grown = peaks[256] - peaks[32]
    assert grown < 96 * 1024 * 1024, f"{grown / 1e6:.0f} MB more memory for 224 MiB more to move"


async def test_many_readers_and_writers_at_once(store: ArtifactStore) -> None:
    async def one(number: int) -> None:
        body = f"{number % 5}\n".encode() * 50_000
        ref = await put_bytes(store, body, "text/plain")
        assert await read_bytes(store, ref) == body

    await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(20))), 60)
