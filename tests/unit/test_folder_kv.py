"""Keys in a folder: the same answers as a bucket, under many writers and after kills."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from llamaduo.bus.folder_kv import FolderKeyValue
from llamaduo.bus.kv import Entry, KeyConflict, KeyValue, MemoryKeyValue
from llamaduo.errors import PermanentError
from tests.support import environment

COUNT = """
import asyncio, sys
from pathlib import Path
from llamaduo.bus.folder_kv import FolderKeyValue
from llamaduo.service_llm.cas import change
from llamaduo.service_llm.clock import SystemClock

async def main():
    kv = FolderKeyValue(Path(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        await change(kv, "count", lambda value: (str(int(value or 0) + 1).encode(), None), SystemClock())

asyncio.run(main())
"""


@pytest.fixture(params=["memory", "folder"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> KeyValue:
    return MemoryKeyValue() if request.param == "memory" else FolderKeyValue(tmp_path / "deep" / "kv")


async def test_a_key_is_created_once_and_changed_only_by_who_has_seen_it(kv: KeyValue) -> None:
    assert await kv.get("a") is None
    with pytest.raises(KeyConflict):
        await kv.update("a", b"x", 1)
    first = await kv.create("a", b"one\ntwo\n\x00")
    assert await kv.get("a") == Entry(b"one\ntwo\n\x00", first)
    with pytest.raises(KeyConflict):
        await kv.create("a", b"again")
    second = await kv.update("a", b"", first)
    with pytest.raises(KeyConflict):
        await kv.update("a", b"late", first)
    assert await kv.get("a") == Entry(b"", second)


async def test_any_key_is_a_key_and_nothing_else_is(kv: KeyValue) -> None:
    names = ["budget.m-1", "budget.m-2", "..", "lock", "new", "a/../../b", "ключ %", ""]
    for name in names:
        await kv.create(name, name.encode())
    assert [(await kv.get(name) or Entry(b"?", 0)).value for name in names] == [name.encode() for name in names]
    assert sorted(await kv.keys("budget.")) == ["budget.m-1", "budget.m-2"]
    assert sorted(await kv.keys("")) == sorted(names)


async def test_one_of_many_writers_wins_each_time(tmp_path: Path) -> None:
    stores = [FolderKeyValue(tmp_path) for _ in range(8)]
    results = await asyncio.gather(
        *(kv.create("k", b"%d" % n) for n, kv in enumerate(stores)), return_exceptions=True
    )
    winners = [n for n, result in enumerate(results) if not isinstance(result, KeyConflict)]
    assert len(winners) == 1
    assert await stores[0].get("k") == Entry(b"%d" % winners[0], 1)


async def test_processes_lose_no_change_of_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNT, str(tmp_path), "30"]
    running = [subprocess.Popen(command, env=environment()) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert await FolderKeyValue(tmp_path).get("count") == Entry(b"60", 60)


async def test_a_kill_leaves_whole_values_and_no_lock(tmp_path: Path) -> None:
    kv = FolderKeyValue(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path), "1000000"], env=environment())
    try:
        async with asyncio.timeout(30):
            while (entry := await kv.get("count")) is None or entry.revision < 20:
                await asyncio.sleep(0.01)
    finally:
        process.kill()
        process.wait(20)
    (tmp_path / "new").write_bytes(b"7")  # as a kill in the middle of a write leaves it
    found = await kv.get("count")
    assert found is not None and int(found.value) == found.revision >= 20
    async with asyncio.timeout(10):
        assert await kv.update("count", b"0", found.revision) == found.revision + 1
    assert await kv.keys("") == ["count"]


async def test_what_is_no_entry_is_said_and_not_taken_for_nothing(tmp_path: Path) -> None:
    kv = FolderKeyValue(tmp_path)
    await kv.create("k", b"v")
    [file] = tmp_path.glob("*.entry")
    file.write_bytes(b"")
    with pytest.raises(PermanentError, match="damaged"):
        await kv.get("k")
