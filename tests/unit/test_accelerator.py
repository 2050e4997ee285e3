"""One accelerator is used in turn: by one at a time, freed by a kill, and not held against those who wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from llamaduo.accelerator import Accelerator, AcceleratorTaken
from llamaduo.errors import UserInputError
from services.inference.engine import InferenceEngine
from services.inference.engines import EngineRoom
from services.inference.fake_engine import FakeEngine
from tests.support import environment, until


async def nothing(_holder: str) -> None:
    """Nobody to tell."""


async def make_fake(_base: str, _rank: int) -> InferenceEngine:
    return FakeEngine()


async def wanted(one: Accelerator) -> None:
    async def is_wanted() -> bool:
        return one.is_wanted()

    await until(is_wanted, seconds=10, what="somebody who waits")


async def test_one_at_a_time_and_who_waits_is_told_by_whom_and_why(tmp_path: Path) -> None:
    trainer = Accelerator(tmp_path, "trainer", "t-1")
    inference = Accelerator(tmp_path, "inference", "i-1")
    await inference.take(nothing)
    inference.say("it serves alias triage")
    said: list[str] = []

    async def told(holder: str) -> None:
        said.append(holder)

    waiting = asyncio.create_task(trainer.take(told))
    await wanted(inference)
    assert not trainer.is_held and set(said) == {"inference/i-1: it serves alias triage"}
    inference.give()
    await asyncio.wait_for(waiting, 10)
    assert trainer.is_held and not inference.try_take() and not trainer.is_wanted()
    assert trainer.holder() == "trainer/t-1"


async def test_who_waited_longer_has_it_first(tmp_path: Path) -> None:
    """Shards that keep coming do not keep a training waiting for ever."""
    trainer = Accelerator(tmp_path, "trainer", "t-1")
    inference = Accelerator(tmp_path, "inference", "i-1")
    await inference.take(nothing)
    training = asyncio.create_task(trainer.take(nothing))
    await wanted(inference)
    inference.give()
    again = asyncio.create_task(inference.take(nothing))
    await asyncio.wait_for(training, 10)
    assert not again.done()
    trainer.give()
    await asyncio.wait_for(again, 10)


async def test_a_second_vllm_is_refused_in_clear_words(tmp_path: Path) -> None:
    first, second = (Accelerator(tmp_path, "inference", name) for name in ("gpu-box-1", "gpu-box-2"))
    await first.take(nothing)
    with pytest.raises(AcceleratorTaken, match=r"inference/gpu-box-1 runs vLLM on this accelerator.*of its own"):
        await second.take(nothing)
    assert not first.is_wanted()


def test_a_kill_frees_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, time\n"
        "from llamaduo.accelerator import Accelerator\n"
        "one = Accelerator(pathlib.Path(sys.argv[1]), 'trainer', 'killed')\n"
        "print(one.try_take(), flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        mine = Accelerator(tmp_path, "inference", "i-1")
        assert not mine.try_take() and mine.holder() == "trainer/killed"
        process.kill()
        process.wait(20)
        assert mine.try_take()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="accelerator's folder cannot be used") as refused:
        Accelerator(tmp_path / "file", "trainer", "t-1")
    assert refused.value.field == "LLAMADUO_ACCELERATOR_DIR"


async def test_the_engine_is_stopped_for_who_waits_but_not_while_it_is_used_or_an_alias_needs_it(
    tmp_path: Path,
) -> None:
    trainer = Accelerator(tmp_path, "trainer", "t-1")
    room = EngineRoom(make_fake, Accelerator(tmp_path, "inference", "i-1"))
    async with room.use("base", 8) as engine:
        training = asyncio.create_task(trainer.take(nothing))
        await wanted(trainer)
        await room.give_way("")
        assert room.engine is engine and engine.healthy()
    await room.give_way("it serves alias triage")
    assert room.engine is engine and trainer.holder() == "inference/i-1: it serves alias triage"
    await room.give_way("")
    assert room.engine is None and not engine.healthy()
    await asyncio.wait_for(training, 10)
    assert not room.may_start() and room.problem() == "waiting: device, held by trainer/t-1"
    trainer.give()
    async with room.use("base", 8) as again:
        assert again.healthy() and room.problem() is None
