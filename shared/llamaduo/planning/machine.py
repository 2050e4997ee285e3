"""The machine that a migration would run on, as far as a plan needs to know it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3
_ASK_S = 20


@dataclass(frozen=True)
class Gpu:
    """A GPU by name; its memory in GiB where that is known."""

    name: str
    memory_gib: float | None = None


@dataclass(frozen=True)
class Machine:
    """Cores that may be used, memory in GiB (None: unknown), and GPUs."""

    cores: int
    memory_gib: float | None
    gpus: tuple[Gpu, ...] = ()

    @property
    def words(self) -> str:
        """The machine in a few words."""
        memory = f"{self.memory_gib:.0f} GiB" if self.memory_gib is not None else "unknown memory"
        if not self.gpus:
            return f"{self.cores} cores, {memory}, no GPU"
        first = self.gpus[0]
        size = f" ({first.memory_gib:.0f} GiB)" if first.memory_gib is not None else ""
        return f"{self.cores} cores, {memory}, {len(self.gpus)} x {first.name}{size}"


def this_machine() -> Machine:
    """What is here, or what a container may use of it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, _memory(), _gpus())


def _memory() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no limit: no such file, or the word `max`
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")) / GIB)
    return total


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(asked, capture_output=True, text=True, timeout=_ASK_S, check=False)
        if said.returncode == 0:
            return tuple(gpu_of(line) for line in said.stdout.splitlines() if line.strip())
    return ()


def gpu_of(line: str) -> Gpu:
    """A GPU from a line of nvidia-smi, `name, MiB`."""
    name, _, mib = line.rpartition(",")
    try:
        return Gpu(name.strip(), int(mib) / 1024)
    except ValueError:  # shared memory is shown in words
        return Gpu((name or mib).strip())
