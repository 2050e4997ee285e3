"""Trains the small model on some rows with the product's own trainer, and has it answer others."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamaduo.base_models import find_packaged_gguf, resolve
from llamaduo.datasets import Row, dump_rows
from llamaduo.migrations.recipe import Recipe
from services.trainer.engine import TrainJob, TrainResult
from services.trainer.trl_engine import TrlEngine, child_environment


@dataclass(frozen=True)
class Model:
    """A trained adapter in `folder`, and how its training went."""

    base: Path
    folder: Path
    result: TrainResult


async def small_base(models: Path) -> Path:
    """The folder of the 135M model that `make setup` converts. FileNotFoundError where its package is missing."""
    ready = models / "SmolLM2-135M-Instruct"
    if ready.is_dir():
        return ready
    packaged = find_packaged_gguf()
    if packaged is None:
        raise FileNotFoundError("the small model is not installed: make setup")
    return (await resolve(str(packaged), models)).folder


async def trained(
    base: Path, folder: Path, train: Sequence[Row], validation: Sequence[Row], recipe: Recipe, seed: int
) -> Model:
    """Trains in `folder`; a folder that was trained in before, on the same job, gives what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_bytes(dump_rows(train))
    (folder / "validation.jsonl").write_bytes(dump_rows(validation))
    job = TrainJob(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        base_folder=base,
        recipe=recipe,
        seed=seed,
        out=folder / "adapter",
        work=folder / "work",
    )
    key, note = job.model_dump_json() + dump_rows(train).decode(), folder / "done.json"
    if note.is_file():
        done = json.loads(note.read_text("utf-8"))
        if done["key"] == key:
            return Model(base, job.out, TrainResult.model_validate(done["result"]))
    engine = TrlEngine(keep_spare=False)
    try:
        result = await engine.train(job, lambda _progress: None)
    finally:
        await engine.close()
    note.write_text(json.dumps({"key": key, "result": result.model_dump(mode="json")}), "utf-8")
    return Model(base, job.out, result)


async def answers_of(model: Model, rows: Sequence[Row], threads: int = 1) -> dict[str, str]:
    """Greedy answers by row id. RuntimeError with the process's last words where it fails."""
    rows_file, out = model.folder.parent / "asked.jsonl", model.folder.parent / "answers.json"
    rows_file.write_bytes(dump_rows(rows))
    environment = child_environment(os.environ) | {"OMP_NUM_THREADS": str(threads)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.banking77.greedy_answers"),
        *map(str, (model.base, model.folder, rows_file, out)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        _, said = await child.communicate()
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode != 0:
        raise RuntimeError(f"answering failed: {said.decode(errors='replace')[-2000:]}")
    given: dict[str, str] = json.loads(out.read_text("utf-8"))
    return given


def right_share(answers: dict[str, str], rows: Sequence[Row]) -> float:
    """Share of rows answered exactly as their reference."""
    return sum(answers[row.id] == row.answer for row in rows) / len(rows)
