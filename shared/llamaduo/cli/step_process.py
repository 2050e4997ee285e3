"""Runs one step of a migration as a child process: a service's own module, which this package may not import."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Collection, Mapping
from typing import TypeVar

import typer
from pydantic import BaseModel

from llamaduo.cli.processes import CHILD, kill_group
from llamaduo.cli.system import is_key_name
from llamaduo.errors import LlamaDuoError, UserInputError

D = TypeVar("D", bound=BaseModel)

GRACE_S = 20.0
"""Seconds between SIGTERM and SIGKILL: calls in flight are awaited, for they are paid."""


def step_environment(environment: Mapping[str, str], keys: Collection[str] | None) -> dict[str, str]:
    """What a step's process may see: all of ours (`keys` None), or of the credentials only those named."""
    return {
        name: value
        for name, value in environment.items()
        if keys is None or not is_key_name(name) or name.removesuffix("_FILE") in keys
    }


async def run_step(
    module: str, arguments: list[str], asked: BaseModel, done: type[D], environment: Mapping[str, str]
) -> D:
    """What `python -m MODULE ARGUMENTS` gives back when it is asked this; what it says on the way is passed on.

    Cancelled, it is asked to leave and awaited. typer.Exit with its code where it has said what is wrong;
    LlamaDuoError where it died. UserInputError where the services are not installed here.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise UserInputError("the services are not installed here", hint="pip install 'llamaduo[synthesizer,judge]'")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(CHILD), str(os.getpid())),
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(environment),
        # A session of its own: Ctrl-C in the terminal reaches this command alone, which asks it to leave once.
        start_new_session=True,
    )
    try:
        out, _ = await process.communicate(asked.model_dump_json().encode())
    finally:
        await _stopped(process)
    code = process.returncode
    if code == 0:
        return done.model_validate_json(out)
    if code in (1, 2, 130):
        raise typer.Exit(code)
    raise LlamaDuoError(f"{module} died ({code}); what was bought is kept: run this again to go on")


async def _stopped(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_S)
    kill_group(process.pid)
