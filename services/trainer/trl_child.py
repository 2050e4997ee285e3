"""The training child process: `python -m services.trainer.trl_child PARENT_PID`.

It loads the libraries first, so that a spare one is ready before there is a job; then one line on stdin names the
job's file. Stdout carries JSON lines and nothing else: one of kind `ready`, one `loaded`, then `progress`, and at
the end `result` or `error`. All that libraries print goes to stderr. SIGTERM leaves a checkpoint after the step in
hand and ends with code 75. When its parent dies, it ends at once.
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from services.trainer.checkpoints import StoppedEarly, keep_if_same_job
from services.trainer.engine import LOG_NAME, TrainingImpossible, TrainJob

EXIT_STOPPED = 75
EXIT_ORPHANED = 76
_PARENT_LOOK_SECONDS = 0.25
# How the ways to run out of memory are worded; torch raises plain RuntimeErrors for host memory.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")


class _Wire:
    """The JSON lines to the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def send(self, kind: str, **content: Any) -> None:
        self._stream.write(json.dumps({"kind": kind, **content}) + "\n")
        self._stream.flush()


class _StopFlag:
    """Set by SIGTERM; before training has begun there is nothing to keep, so the process just leaves."""

    def __init__(self) -> None:
        self.raised = False
        self.training = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.raised = True
        if not self.training:
            os._exit(EXIT_STOPPED)


def main() -> int:
    """Entry point; see the module's text. Gives the exit code."""
    stop = _StopFlag()
    threading.Thread(target=_die_with, args=(int(sys.argv[1]),), daemon=True).start()
    wire = _Wire(_take_stdout())
    # One process trains on one GPU; several visible ones would be a mistake to TRL.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    importlib.import_module("services.trainer.trl_training")
    wire.send("ready")
    job_file = sys.stdin.readline().strip()
    if not job_file:
        return 0
    job = TrainJob.model_validate_json(Path(job_file).read_text("utf-8"))
    job.work.mkdir(parents=True, exist_ok=True)
    _log_to(job.work / LOG_NAME)
    with (job.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wire.send("error", permanent=False, message=f"another process is training in {job.work}")
            return 1
        return _run(job, wire, stop)


def _run(job: TrainJob, wire: _Wire, stop: _StopFlag) -> int:
    started = time.monotonic()
    try:
        from services.trainer import trl_training

        def loaded() -> None:
            stop.training = True
            wire.send("loaded", seconds=time.monotonic() - started)

        keep_if_same_job(job)
        trained = trl_training.train(
            job,
            on_progress=lambda progress: wire.send("progress", **progress.model_dump()),
            on_loaded=loaded,
            stop=lambda: stop.raised,
        )
    except StoppedEarly:
        return EXIT_STOPPED
    except TrainingImpossible as error:
        wire.send("error", permanent=True, message=str(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        memory = isinstance(error, MemoryError) or any(word in str(error) for word in _MEMORY_WORDS)
        reason = "out of memory: use fewer rows a batch, a lower max_length, or nf4" if memory else "failed"
        wire.send("error", permanent=memory, message=f"{reason}: {type(error).__name__}: {_first_line(error)}")
        return 1
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wire.send("result", peak_rss_mb=round(peak_mb, 1), **dataclasses.asdict(trained))
    return 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]


def _take_stdout() -> IO[str]:
    """The real stdout for us alone; file descriptor 1 becomes stderr, also for C libraries."""
    mine = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return mine


def _log_to(path: Path) -> None:
    """From here on, stderr and all that libraries print is this job's log."""
    sys.stderr.flush()
    with path.open("wb") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)


def _die_with(parent: int) -> None:
    """Ends the process once its parent is another than `parent`: nobody would read the result."""
    while os.getppid() == parent:
        time.sleep(_PARENT_LOOK_SECONDS)
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    raise SystemExit(main())
