"""Which checkpoints of a work folder can be gone on from. No ML library is needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from services.trainer.engine import TrainJob

_MARKER = "whole"
_JOB = "job.sha256"


class StoppedEarly(Exception):
    """The run was asked to stop, and left a checkpoint."""


def mark_whole(checkpoint: Path) -> None:
    """Says that all files of `checkpoint` have been written."""
    (checkpoint / _MARKER).touch()


def newest_whole(work: Path) -> Path | None:
    """The checkpoint with the most steps that was written to its end; half-written ones are removed."""
    whole: dict[int, Path] = {}
    for folder in work.glob("checkpoint-*"):
        if (folder / _MARKER).is_file():
            whole[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    return whole[max(whole)] if whole else None


def keep_if_same_job(job: TrainJob) -> None:
    """Empties `job.work` of checkpoints unless they are of this very job: all that decides its adapter."""
    parts = {
        "train": _sha256(job.train),
        "validation": _sha256(job.validation) if job.validation else None,
        "base": sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in job.base_folder.iterdir()),
        "previous": _sha256(job.previous) if job.previous else None,
        "recipe": job.recipe.model_dump(),
        "seed": job.seed,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    job.work.mkdir(parents=True, exist_ok=True)
    note = job.work / _JOB
    if not note.is_file() or note.read_text("utf-8") != key:
        for folder in job.work.glob("checkpoint-*"):
            shutil.rmtree(folder)
        note.write_text(key, "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
