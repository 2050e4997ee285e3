"""The fake engine: what it writes depends on rows, recipe and seed alone, and it can be interrupted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from pathlib import Path

import pytest

from llamaduo.migrations.recipe import Recipe
from services.trainer.engine import ADAPTER_FILES, TrainJob, TrainProgress
from services.trainer.fake_engine import FakeTrainingEngine


def _job(folder: Path, *, rows: int = 5, seed: int = 0, recipe: Recipe | None = None) -> TrainJob:
    folder.mkdir(parents=True, exist_ok=True)
    train = folder / "train.jsonl"
    train.write_text(
        "".join(
            json.dumps(
                {
                    "id": f"r{i}",
                    "messages": [
                        {"role": "user", "content": f"question {i}"},
                        {"role": "assistant", "content": f"answer {i}"},
                    ],
                }
            )
            + "\n"
            for i in range(rows)
        )
    )
    return TrainJob(
        train=train,
        base_folder=Path("base"),
        recipe=recipe or Recipe(steps=4),
        seed=seed,
        out=folder / "out",
        work=folder / "work",
    )


async def _files(job: TrainJob) -> dict[str, str]:
    return (await FakeTrainingEngine(0).train(job, lambda _: None)).files


async def test_bytes_depend_on_rows_recipe_and_seed_only(tmp_path: Path) -> None:
    first = await _files(_job(tmp_path / "a"))
    assert first == await _files(_job(tmp_path / "b"))
    weights = {first["adapter_model.safetensors"]}
    for name, job in {
        "rows": _job(tmp_path / "c", rows=6),
        "seed": _job(tmp_path / "d", seed=1),
        "recipe": _job(tmp_path / "e", recipe=Recipe(steps=5)),
    }.items():
        digest = (await _files(job))["adapter_model.safetensors"]
        assert digest not in weights, name
        weights.add(digest)


async def test_the_folder_holds_a_well_formed_adapter(tmp_path: Path) -> None:
    job = _job(tmp_path)
    seen: list[TrainProgress] = []
    result = await FakeTrainingEngine(0).train(job, seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert {p.name for p in job.out.iterdir()} == set(ADAPTER_FILES) == set(result.files)
    body = (job.out / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(body).hexdigest() == result.files["adapter_model.safetensors"]
    (length,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + length])
    assert header.pop("__metadata__")["rows"] == "5"
    assert max(tensor["data_offsets"][1] for tensor in header.values()) == len(body) - 8 - length
    assert json.loads((job.out / "adapter_config.json").read_text())["r"] == job.recipe.rank


async def test_cancelling_leaves_no_adapter(tmp_path: Path) -> None:
    job = _job(tmp_path)
    task = asyncio.create_task(FakeTrainingEngine(60).train(job, lambda _: None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not job.out.exists()
