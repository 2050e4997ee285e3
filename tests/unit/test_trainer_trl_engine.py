"""How the child process's words and its end are translated; the child here is a script, not a training."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from llamaduo.event_parts import PreferenceTraining
from llamaduo.migrations.recipe import Recipe
from services.trainer.checkpoints import keep_if_same_job, mark_whole, newest_whole
from services.trainer.engine import TrainingFailed, TrainingImpossible, TrainJob, TrainProgress
from services.trainer.trl_engine import TrlEngine, child_environment

RESULT: dict[str, object] = {
    "kind": "result",
    "best_step": 2,
    "steps": 2,
    "loss": 0.5,
    "validation_loss": None,
    "validation_curve": [],
    "rows_given": 3,
    "rows_kept": 3,
    "rows_cut": 0,
    "label_tokens": 5,
    "total_tokens": 9,
    "device": "cpu",
    "precision": "fp32",
    "versions": {},
    "peak_rss_mb": 1.0,
    "preference": PreferenceTraining(asked=4, pairs=2).model_dump(),
}
ERROR: dict[str, object] = {"kind": "error", "message": "too big"}
PROGRESS: dict[str, object] = {"kind": "progress", "step": 1, "steps": 2, "loss": 0.9, "validation_loss": None}


def _job(folder: Path) -> TrainJob:
    base = folder / "base"
    base.mkdir(exist_ok=True)
    train = folder / "train.jsonl"
    train.touch()
    return TrainJob(train=train, base_folder=base, recipe=Recipe(steps=2), out=folder / "out", work=folder / "work")


def _engine(folder: Path, script: str) -> TrlEngine:
    """An engine whose "interpreter" is a shell script that says it is ready and takes its job."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{_say({'kind': 'ready'})}\nread job\n{script}\n")
    file.chmod(0o755)
    return TrlEngine(python=str(file))


def _say(message: dict[str, object]) -> str:
    return f"echo '{json.dumps(message)}'"


async def test_progress_and_result_are_passed_on(tmp_path: Path) -> None:
    job = _job(tmp_path)
    job.out.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (job.out / name).write_bytes(b"x")
    seen: list[TrainProgress] = []
    script = "\n".join([_say({"kind": "loaded", "seconds": 4.5}), _say(PROGRESS), "echo cut{off", _say(RESULT)])
    result = await _engine(tmp_path, script).train(job, seen.append)
    assert result.preference == PreferenceTraining(asked=4, pairs=2)
    assert [p.step for p in seen] == [1]
    assert result.seconds_loading == 4.5
    assert set(result.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert result.began < result.ended


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo the last word >&2; exit 3", TrainingFailed, "code 3\nthe last word"),
        ("kill -9 $$", TrainingFailed, "SIGKILL"),
        ("exit 75", TrainingFailed, "code 75"),
        (
            _say({"kind": "error", "permanent": True, "message": "out of memory"}) + "; exit 1",
            TrainingImpossible,
            "out of",
        ),
        (_say({"kind": "error", "permanent": False, "message": "disk"}) + "; exit 1", TrainingFailed, "disk"),
    ],
)
async def test_ends_without_an_adapter_are_errors(
    tmp_path: Path, script: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await _engine(tmp_path, script).train(_job(tmp_path), lambda _: None)


async def test_cancelling_asks_politely_first(tmp_path: Path) -> None:
    begun = asyncio.Event()
    script = f"trap 'echo stopped > {tmp_path}/note; exit 75' TERM\n{_say(PROGRESS)}\nwhile :; do sleep 0.05; done"
    task = asyncio.create_task(_engine(tmp_path, script).train(_job(tmp_path), lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "note").read_text() == "stopped\n"


async def test_a_child_deaf_to_politeness_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.trl_engine.POLITE_SECONDS", 0.3)
    begun = asyncio.Event()
    script = f"trap '' TERM\necho $$ > {tmp_path}/pid\n{_say(PROGRESS)}\nwhile :; do sleep 0.05; done"
    task = asyncio.create_task(_engine(tmp_path, script).train(_job(tmp_path), lambda _: begun.set()))
    await begun.wait()
    task.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIG_DFL)


def test_the_child_gets_no_secrets() -> None:
    given = {"PATH": "/bin", "OPENAI_API_KEY": "k", "HF_TOKEN": "t", "CUDA_VISIBLE_DEVICES": "1", "LLAMADUO_X": "y"}
    environment = child_environment(given)
    assert {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}.items() <= environment.items()
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "LLAMADUO_X"} & environment.keys()
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_only_whole_checkpoints_are_gone_on_from(tmp_path: Path) -> None:
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert newest_whole(tmp_path / "none") is None
    for step in (2, 10):
        mark_whole(tmp_path / f"checkpoint-{step}")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_checkpoints_of_another_job_are_removed(tmp_path: Path) -> None:
    job = _job(tmp_path)
    keep_if_same_job(job)
    checkpoint = job.work / "checkpoint-2"
    checkpoint.mkdir()
    keep_if_same_job(job)
    assert checkpoint.exists()
    keep_if_same_job(job.model_copy(update={"seed": 1}))
    assert not checkpoint.exists()
