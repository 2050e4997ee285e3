"""Runs the TRL training child process and translates it for the service. Imports no ML library itself."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llamaduo.scratch_folders import make_scratch
from services.trainer.engine import (
    ADAPTER_FILES,
    LOG_NAME,
    TrainingFailed,
    TrainingImpossible,
    TrainJob,
    TrainProgress,
    TrainResult,
)

POLITE_SECONDS = 10.0
_LOG_TAIL_BYTES = 4000
_LINE_LIMIT = 8 * 1024 * 1024
_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
# Nothing else of the service's environment reaches the child: it needs no key and no token.
_KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TZ"}
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_")


class TrlEngine:
    """A TrainingEngine whose every job is a child process, so that a crash there is an error here.

    `python` is the interpreter that has torch and TRL. What the child prints is kept in `work`/train.log. With
    `keep_spare`, a child that has the libraries loaded waits for the next job: some 0.5 GB of memory for some ten
    seconds less a round.
    """

    def __init__(self, python: str = sys.executable, *, keep_spare: bool = False) -> None:
        self._python, self._keep_spare = python, keep_spare
        self._spare: asyncio.subprocess.Process | None = None
        self._early_log = make_scratch("trainer") / "child.log"

    async def warm_up(self) -> None:
        """Start a spare child, if it is wanted and there is none."""
        if self._keep_spare and (self._spare is None or self._spare.returncode is not None):
            self._spare = await self._start_child()

    async def close(self) -> None:
        """End the spare child."""
        if self._spare is not None:
            await _end(self._spare)
        shutil.rmtree(self._early_log.parent, ignore_errors=True)

    async def train(self, job: TrainJob, on_progress: Callable[[TrainProgress], None]) -> TrainResult:
        """See TrainingEngine."""
        job.work.mkdir(parents=True, exist_ok=True)
        job_file = job.work / "job.json"
        job_file.write_text(job.model_dump_json(indent=2) + "\n", "utf-8")
        kills_before = _memory_kills()
        (job.work / LOG_NAME).unlink(missing_ok=True)
        child, self._spare = self._spare, None
        if child is None or child.returncode is not None:
            child = await self._start_child()
        try:
            began = await _hand_over(child, job_file)
            last = await _read(child, on_progress)
            code = await child.wait()
        finally:
            await _end(child)
        if code == 0 and last.get("kind") == "result":
            result = await asyncio.to_thread(_result, job, last, began)
            await self.warm_up()
            return result
        tail = _tail(job.work / LOG_NAME) or _tail(self._early_log)
        raise _failure(code, last, tail, _memory_kills() > kills_before)

    async def _start_child(self) -> asyncio.subprocess.Process:
        with self._early_log.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(self._python, "-m", "services.trainer.trl_child", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=child_environment(os.environ),
                start_new_session=True,
                limit=_LINE_LIMIT,
            )


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of `environment` the child gets, and the settings it needs; a recipe may ask for fewer threads later."""
    kept = {k: v for k, v in environment.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    return kept | {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # Spinning threads wait for each other for many times the work's length where cores are shared.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # The order of sets must not decide what an adapter looks like.
        "PYTHONHASHSEED": "0",
    }


async def _hand_over(child: asyncio.subprocess.Process, job_file: Path) -> datetime:
    """Give the child its job; when it took it. The child's early end shows when it is read."""
    assert child.stdin is not None and child.stdout is not None
    while line := await child.stdout.readline():
        if b'"ready"' in line:
            break
    began = datetime.now(UTC)
    with contextlib.suppress(ConnectionError):
        child.stdin.write(f"{job_file}\n".encode())
        await child.stdin.drain()
        child.stdin.close()
    return began


async def _read(child: asyncio.subprocess.Process, on_progress: Callable[[TrainProgress], None]) -> dict[str, Any]:
    """Passes progress on until the child closes its stdout; gives its last word, a result or an error, if any."""
    assert child.stdout is not None
    last: dict[str, Any] = {}
    loading = 0.0
    async for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        kind = message.pop("kind", None)
        if kind == "progress":
            on_progress(TrainProgress.model_validate(message))
        elif kind == "loaded":
            loading = float(message["seconds"])
        elif kind in ("result", "error"):
            last = {"kind": kind, "seconds_loading": loading, **message}
    return last


async def _end(child: asyncio.subprocess.Process) -> None:
    """Ends the child if it still runs: politely, so that it leaves a checkpoint, then by force."""
    if child.returncode is not None:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), POLITE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _result(job: TrainJob, last: dict[str, Any], began: datetime) -> TrainResult:
    files = {name: hashlib.sha256((job.out / name).read_bytes()).hexdigest() for name in ADAPTER_FILES}
    fields = {key: value for key, value in last.items() if key != "kind"}
    return TrainResult.model_validate(
        fields | {"files": files, "seed": job.seed, "began": began, "ended": datetime.now(UTC)}
    )


def _failure(code: int, last: dict[str, Any], tail: str, memory_kill: bool) -> Exception:
    if last.get("kind") == "error":
        message = f"training: {last['message']}"
        return TrainingImpossible(message) if last["permanent"] else TrainingFailed(f"{message}\n{tail}")
    if code == -signal.SIGKILL and memory_kill:
        return TrainingImpossible(
            "training: killed by the system, out of memory: use fewer rows a batch, a lower max_length, or nf4"
        )
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:
        how += (
            " (was it the system, out of memory? Then use fewer rows a batch, a lower rank or max_length, or nf4: "
            "recipe.batch_size, recipe.rank, recipe.max_length, recipe.precision)"
        )
    return TrainingFailed(f"training: {how}\n{tail}")


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-15:])
    return ""


def _memory_kills() -> int:
    """How often the kernel has killed for memory in this control group; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in _CGROUP_EVENTS.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
