"""`llamaduo up` and `llamaduo down`: the whole system on this machine, without containers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.cli.system import Plan, System

LOOK_EVERY_S = 0.5
DOWN_TIMEOUT_S = 25.0
DETACH_TIMEOUT_S = 60.0


def up(
    emulator: Annotated[
        bool, typer.Option("--emulator", help="Also run the stand-in for a service LLM (no key, not a model).")
    ] = False,
    nats_port: Annotated[int, typer.Option(min=0, max=65535, help="0 or a taken one: a free port.")] = 4222,
    without: Annotated[list[str] | None, typer.Option(help="Leave a service out; may be repeated.")] = None,
    evaluator: Annotated[
        list[str] | None, typer.Option(help="Also run this evaluator, e.g. label-accuracy; may be repeated.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go on in the background.")] = False,
) -> None:
    """Run nats-server and all services as child processes, until Ctrl-C.

    Data, logs and up.json are in the state folder. A service that dies is started again.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.state import state_dir
    from llamaduo.cli.system import Plan

    plan = Plan(
        state_dir(),
        nats_port=nats_port,
        emulator=() if emulator else None,
        without=tuple(without or ()),
        evaluators=tuple(dict.fromkeys(evaluator or ())),
    )
    if detach:
        _detach(plan)
        return
    try:
        run(_serve(plan))
    except KeyboardInterrupt:
        typer.echo("stopped")


async def _serve(plan: Plan) -> None:
    from llamaduo.cli.system import running

    async with running(plan) as system:
        typer.echo(f"bus: {system.nats_url}; logs: {plan.state / 'logs'}; Ctrl-C stops all")
        if system.emulator_url:
            typer.echo(f"emulator (not a model): {system.emulator_url}")
        await report_states(system)


async def report_states(system: System) -> None:
    """Says what becomes ready, dies or hangs; runs until it is cancelled."""
    from llamaduo.cli.system import NO_HEALTH, state_of

    told: dict[str, str] = {}
    while True:
        for name, child in list(system.supervisor.children.items()):
            if child.pid is None:
                state = f"died with code {child.last_code}, starting it again (see {child.program.log})"
            elif name in NO_HEALTH:
                state = "ready"
            else:
                state = await state_of(name, child.pid, child.port, child.started)
            if told.get(name) != state:
                told[name] = state
                typer.echo(f"{name}: {state}")
        await asyncio.sleep(LOOK_EVERY_S)


def _detach(plan: Plan) -> None:
    from llamaduo.cli.state import STATE_VARIABLE, read_note
    from llamaduo.errors import LlamaDuoError, UserInputError

    if read_note(plan.state) is not None:
        raise UserInputError(f"another `llamaduo up` is running on {plan.state}", hint="`llamaduo down` stops it")
    log = plan.state / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "llamaduo.cli.main", "up", "--nats-port", str(plan.nats_port)]
    command += ["--emulator"] if plan.emulator is not None else []
    for name in plan.without:
        command += ["--without", name]
    for name in plan.evaluators:
        command += ["--evaluator", name]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {STATE_VARIABLE: str(plan.state)},
        )
    deadline = time.monotonic() + DETACH_TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        note = read_note(plan.state)
        if note is not None and note.pid == child.pid and any(c.name == "verdict" for c in note.children):
            typer.echo(f"up, pid {child.pid}; bus: {note.nats_url}; `llamaduo status` shows it, `down` stops it")
            return
        time.sleep(0.1)
    raise LlamaDuoError(f"it did not come up: see {log}")


def down() -> None:
    """Stop the `llamaduo up` that runs on this state folder."""
    from llamaduo.cli.state import is_locked, read_note, state_dir
    from llamaduo.errors import LlamaDuoError

    state: Path = state_dir()
    note = read_note(state)
    if note is None:
        typer.echo(f"nothing runs on {state}")
        return
    os.kill(note.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while is_locked(state):
        if time.monotonic() > deadline:
            raise LlamaDuoError(f"pid {note.pid} has not stopped in {DOWN_TIMEOUT_S:.0f} s: see {state / 'logs'}")
        time.sleep(0.1)
    typer.echo("stopped")
