"""Child processes of `llamaduo up`: start, watch, start again with a growing pause, stop by pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
STEADY_S = 60.0
"""A child that lived this long is started again without a pause."""
LARGEST_LOG = 20_000_000


@dataclass(frozen=True)
class Program:
    """What to run: `argv`, its whole environment, and where its output goes."""

    name: str
    argv: Sequence[str]
    env: dict[str, str]
    log: Path
    port_file: Path | None = None
    grace_s: float = 14.0
    """Seconds between SIGTERM and SIGKILL."""


@dataclass
class Child:
    """A program under watch."""

    program: Program
    process: asyncio.subprocess.Process | None = None
    started: float = 0.0
    """When its process was last started, in seconds since 1970."""
    restarts: int = 0
    quick_deaths: int = 0
    last_code: int | None = None
    stopping: bool = False
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Of the running process, if it runs."""
        return self.process.pid if self.process and self.process.returncode is None else None

    @property
    def port(self) -> int | None:
        """The HTTP port that it wrote down, if it has."""
        if self.program.port_file is None:
            return None
        try:
            return int(self.program.port_file.read_text("ascii"))
        except (OSError, ValueError):
            return None


class Supervisor:
    """Keeps programs running until they are stopped; `changed` is called after each start and death."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.children: dict[str, Child] = {}
        self._changed = changed

    async def start(self, program: Program) -> Child:
        """Start a program and keep it running. OSError if its log cannot be written."""
        program.log.parent.mkdir(parents=True, exist_ok=True)
        child = Child(program)
        self.children[program.name] = child
        await self._spawn(child)
        child.watcher = asyncio.create_task(self._keep(child), name=f"watch {program.name}")
        return child

    async def _spawn(self, child: Child) -> None:
        program = child.program
        if program.port_file is not None:
            program.port_file.parent.mkdir(parents=True, exist_ok=True)
            program.port_file.unlink(missing_ok=True)
        if program.log.exists() and program.log.stat().st_size > LARGEST_LOG:
            program.log.replace(program.log.with_suffix(".log.1"))
        with program.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches `up` alone, which stops all in order.
            child.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(CHILD), str(os.getpid())),
                *program.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=program.env,
                start_new_session=True,
            )
        child.started = time.time()
        self._changed()

    async def _keep(self, child: Child) -> None:
        pause = FIRST_PAUSE_S
        while child.process is not None:
            born = time.monotonic()
            child.last_code = await child.process.wait()
            if child.stopping:
                return
            kill_group(child.process.pid)  # what it may have left behind
            if time.monotonic() - born > STEADY_S:
                pause, child.quick_deaths = FIRST_PAUSE_S, 0
            child.quick_deaths += 1
            self._changed()
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2)
            child.restarts += 1
            await self._spawn(child)

    async def stop(self, names: Sequence[str]) -> None:
        """SIGTERM to these, all at once; SIGKILL to whole process groups that outlive their grace time."""
        await asyncio.gather(*(self._stop(self.children[name]) for name in names if name in self.children))

    async def _stop(self, child: Child) -> None:
        child.stopping = True
        process = child.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), child.program.grace_s)
            except TimeoutError:
                kill_group(process.pid)
                await process.wait()
        if process is not None:
            kill_group(process.pid)
        if child.watcher is not None:
            child.watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await child.watcher
        # The watcher may have been about to start it anew.
        if child.process is not process and child.process is not None and child.process.returncode is None:
            kill_group(child.process.pid)
            await child.process.wait()


def kill_group(leader: int) -> None:
    """SIGKILL to the process group of a child that was started as a session leader, if anything is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
