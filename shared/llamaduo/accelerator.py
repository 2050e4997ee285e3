"""One accelerator that trainer and inference of a machine use in turn.

A GPU that holds vLLM has no room for a training beside it. Who uses it holds a lock on a file in a folder that all of
them see (a volume, for containers); who waits holds a shared lock on another, so that the holder knows. The kernel
frees both with the process that held them: there is no lease to outlive a kill, and no clock. A lock tells of this
machine only, as the accelerator is a thing of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from llamaduo.errors import NotYet, UserInputError

Role = Literal["trainer", "inference"]
Told = Callable[[str], Awaitable[None]]
"""Is told who holds the accelerator, again and again while it is waited for."""
WAITING = "waiting: device"
"""The stage of a job that waits, in progress."""
_LOOK_S = 0.25
_AFTER_YOU_S = 4 * _LOOK_S


class AcceleratorTaken(NotYet):
    """Another inference replica has the accelerator: it does not give it to a second vLLM."""


class Accelerator:
    """The accelerator as one process sees it. `folder` is that of all who share it, `who` the replica's name.

    UserInputError where the folder cannot be used.
    """

    def __init__(self, folder: Path, role: Role, who: str) -> None:
        self._role, self._who = role, who
        self._held_file, self._wanted_file = folder / "held", folder / "wanted"
        self._lock: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (self._held_file, self._wanted_file):
                os.close(_open(file))
        except OSError as error:
            raise UserInputError(
                f"the accelerator's folder cannot be used: {error.strerror}",
                file=str(folder),
                field="LLAMADUO_ACCELERATOR_DIR",
            ) from error

    @property
    def is_held(self) -> bool:
        """Whether this process has it."""
        return self._lock is not None

    def try_take(self) -> bool:
        """Take it where nobody has it; whether this process has it now."""
        if self._lock is None:
            file = _open(self._held_file)
            if not _locked(file, fcntl.LOCK_EX):
                os.close(file)
                return False
            self._lock = file
            self.say("")
        return True

    async def take(self, told: Told) -> None:
        """Take it, once others who waited have had it. AcceleratorTaken where another inference replica has it."""
        if self._lock is not None:
            return
        if self.is_wanted():
            await asyncio.sleep(_AFTER_YOU_S)
        wanted = _open(self._wanted_file)
        try:
            while not self.try_take():
                # Refused for the moment in which somebody looks: then the next turn does it.
                _locked(wanted, fcntl.LOCK_SH)
                holder = self.holder()
                if self._role == "inference" and holder.startswith("inference/"):
                    raise AcceleratorTaken(
                        f"{holder} runs vLLM on this accelerator, which has no room for a second one: give this "
                        "replica an accelerator and an LLAMADUO_ACCELERATOR_DIR of its own",
                        delay=5,
                    )
                await told(holder)
                await asyncio.sleep(_LOOK_S)
        finally:
            os.close(wanted)

    def give(self) -> None:
        """Let others have it; nothing happens if it is not held."""
        file, self._lock = self._lock, None
        if file is not None:
            os.ftruncate(file, 0)
            os.close(file)

    @asynccontextmanager
    async def use(self, told: Told) -> AsyncIterator[None]:
        """Take it and give it back."""
        await self.take(told)
        try:
            yield
        finally:
            self.give()

    def is_wanted(self) -> bool:
        """Whether another process waits for it."""
        file = _open(self._wanted_file)
        try:
            return not _locked(file, fcntl.LOCK_EX)
        finally:
            os.close(file)

    def say(self, why: str) -> None:
        """Tell those who wait what it is needed for. Nothing happens if it is not held."""
        if self._lock is not None:
            said = f"{self._role}/{self._who}" + (f": {why}" if why else "")
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, said.encode(), 0)

    def holder(self) -> str:
        """Who has it, and what it is needed for where they said so."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self._held_file.read_text("utf-8") or "somebody"
        return "somebody"


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
