"""`llamaduo backup` and `restore` as processes, on state folders on which nothing else runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.cli.state import exclusive
from llamaduo.cli.system import own_server
from llamaduo.events import DatasetReady
from llamaduo.settings import BusSettings
from tests.support import environment


async def llamaduo(state: Path, *words: str, **extra: str) -> tuple[int, str, str]:
    """Exit code, output and messages of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llamaduo.cli.main", "--state", str(state), *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**extra),
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def own_bus(state: Path, artifacts_url: str | None = None) -> AsyncIterator[Bus]:
    async with own_server(state) as url:
        bus = await Bus.connect(BusSettings(nats_url=url, artifacts_url=artifacts_url), "test")
        try:
            yield bus
        finally:
            await bus.close()


async def filled(state: Path, artifacts_url: str | None = None) -> DatasetReady:
    async with own_bus(state, artifacts_url) as bus:
        await topology.bootstrap(bus.js)
        ref = await put_bytes(await bus.artifacts(), b"a row\n", "text/plain")
        event = DatasetReady(migration="m-1", round=0, splits={"train": ref}, rows={"train": 1}, digest=ref.sha256)
        await bus.publish(event)
        return event


async def test_from_one_state_folder_to_another_on_which_nothing_runs(tmp_path: Path) -> None:
    here, there, target = tmp_path / "here", tmp_path / "there", str(tmp_path / "backup")
    event = await filled(here)
    code, out, _ = await llamaduo(here, "backup", target)
    assert code == 0 and "1 events, 0 dead letters, 1 artifacts" in out
    code, out, _ = await llamaduo(there, "restore", target)
    assert code == 0 and "llamaduo up" in out
    code, out, _ = await llamaduo(there, "restore", target)
    assert code == 0 and "on the bus already" in out
    async with own_bus(there) as bus:
        assert [logged.event async for logged in bus.log(follow=False)] == [event]
        assert await read_bytes(await bus.artifacts(), event.splits["train"]) == b"a row\n"
        await bus.publish(event.model_copy(update={"round": 1}))
    code, _, err = await llamaduo(there, "restore", target)
    assert code == 2 and "not empty: EVENTS" in err and len(err.strip().splitlines()) == 1


async def test_artifacts_outside_the_bus_go_back_where_events_say_they_are(tmp_path: Path) -> None:
    here, there, target = tmp_path / "here", tmp_path / "there", str(tmp_path / "backup")
    url = f"file://{tmp_path / 'store'}"
    event = await filled(here, url)
    code, out, _ = await llamaduo(here, "backup", target, LLAMADUO_ARTIFACTS_URL=url)
    assert code == 0 and "1 artifacts" in out
    (tmp_path / "store").rename(tmp_path / "lost")
    code, _, err = await llamaduo(there, "restore", target)
    assert code == 2 and f"set LLAMADUO_ARTIFACTS_URL={url}" in err
    code, _, err = await llamaduo(there, "restore", target, LLAMADUO_ARTIFACTS_URL=url)
    assert code == 0, err
    async with own_bus(there, url) as bus:
        assert await read_bytes(await bus.artifacts(), event.splits["train"]) == b"a row\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("restore", "nowhere"), "no such folder"),
        (("restore", "."), "never finished"),
        (("backup", "out"), "no bus answers"),
        (("backup", "nothing://x"), "a folder, or e.g. s3://"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = await llamaduo(tmp_path / "state", *words, LLAMADUO_NATS_URL="nats://127.0.0.1:1")
    assert code in (1, 2) and said in err and len(err.strip().splitlines()) == 1, err


async def test_no_restore_on_a_state_folder_on_which_up_runs_on_its_own_server(tmp_path: Path) -> None:
    here, target = tmp_path / "here", str(tmp_path / "backup")
    await filled(here)
    assert (await llamaduo(here, "backup", target))[0] == 0
    with exclusive(tmp_path / "there"):  # an `up` that is just starting: its bus is not to be found yet
        code, _, err = await llamaduo(tmp_path / "there", "restore", target)
    assert code == 2 and "another `llamaduo up`" in err
