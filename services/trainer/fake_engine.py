"""A plain stand-in for training: deterministic, quick, and interruptible, for tests of everything around it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import platform
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime

from services.trainer.engine import TrainJob, TrainProgress, TrainResult
from services.trainer.rows import read_rows

_MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
_WIDTH = 4


class FakeTrainingEngine:
    """Writes an adapter whose bytes depend only on the training rows, the recipe and the seed.

    `seconds` is how long a job takes, spread over its steps. The safetensors header carries the number of
    training rows as metadata `rows`.
    """

    def __init__(self, seconds: float = 0.2) -> None:
        self._seconds = seconds

    async def train(self, job: TrainJob, on_progress: Callable[[TrainProgress], None]) -> TrainResult:
        """See TrainingEngine."""
        began = datetime.now(UTC)
        rows = read_rows(job.train)
        steps = job.recipe.steps
        for step in range(1, steps + 1):
            await asyncio.sleep(self._seconds / steps)
            on_progress(TrainProgress(step=step, steps=steps, loss=_loss(step)))
        files = _write_adapter(job, len(rows))
        answers = sum(len(row.answer.split()) for row in rows)
        prompts = sum(len(m.content.split()) for row in rows for m in row.prompt)
        return TrainResult(
            files=files,
            best_step=steps,
            steps=steps,
            loss=_loss(steps),
            validation_loss=_loss(steps) if job.validation else None,
            validation_curve=[(steps, _loss(steps))] if job.validation else [],
            weak=_weak(job),
            rows_given=len(rows),
            rows_kept=len(rows),
            rows_cut=0,
            label_tokens=answers,
            total_tokens=answers + prompts,
            seed=job.seed,
            device="fake",
            precision="fake",
            versions={"python": platform.python_version()},
            began=began,
            ended=datetime.now(UTC),
            seconds_loading=0.0,
            peak_rss_mb=0.0,
        )


def _loss(step: int) -> float:
    return math.exp(-step / 20)


def _weak(job: TrainJob) -> list[tuple[str, float]]:
    """Every second validation row by id, as if it had not been learnt."""
    rows = read_rows(job.validation) if job.validation else []
    return [(row.id, 1.0) for row in rows[::2]]


def _write_adapter(job: TrainJob, rows: int) -> dict[str, str]:
    """Writes the adapter folder at once by a rename; gives its files and their SHA-256."""
    rank = job.recipe.rank
    key = f"{hashlib.sha256(job.train.read_bytes()).hexdigest()}\n{job.recipe.model_dump_json()}\n{job.seed}"
    config = {
        "base_model_name_or_path": job.base_name or job.base_folder.name,
        "bias": "none",
        "lora_alpha": job.recipe.alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    contents = {
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "adapter_model.safetensors": _safetensors(
            {f"{_MODULE}.lora_A.weight": (rank, _WIDTH), f"{_MODULE}.lora_B.weight": (_WIDTH, rank)}, key, rows
        ),
    }
    partial = job.out.with_name(f"{job.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in contents.items():
        (partial / name).write_bytes(content)
    shutil.rmtree(job.out, ignore_errors=True)
    partial.rename(job.out)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _safetensors(shapes: dict[str, tuple[int, int]], key: str, rows: int) -> bytes:
    """A safetensors file of float32 tensors in [0, 1) drawn from `key`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "rows": str(rows)}}
    body = b""
    for name, shape in sorted(shapes.items()):
        count = shape[0] * shape[1]
        draws = hashlib.shake_256(f"{key}\n{name}".encode()).digest(2 * count)
        values = (draw / 65536 for (draw,) in struct.iter_unpack("<H", draws))
        data = struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
