"""`llamaduo evaluator`: who may mark answers, and running one of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.evaluators import Evaluator

app = typer.Typer(no_args_is_help=True, help="Evaluators: give one a place on the bus, list them, run one.")
Name = Annotated[str, typer.Argument(help="Name of the evaluator, as a spec names it.")]


@app.command()
def add(
    name: Name,
    backfill: Annotated[bool, typer.Option("--backfill", help="From the log's start, not from now.")] = False,
) -> None:
    """Create the consumer of a new evaluator. Safe to repeat."""
    from llamaduo.bus import topology
    from llamaduo.cli.connect import run, the_bus
    from llamaduo.errors import UserInputError

    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise UserInputError(f"{name!r} is no name: lower-case letters, digits and dashes", field="NAME")

    async def work() -> None:
        async with the_bus() as bus:
            await topology.add_evaluator(bus.js, name, profile=bus.settings.profile, backfill=backfill)
        typer.echo(f"{name} may mark; name it under `evaluators` in a spec, and run it: llamaduo evaluator run …")

    run(work())


@app.command("list")
def list_evaluators(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """All evaluators that have a consumer, and how much waits for them."""
    from llamaduo.bus import topology
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            rows = [
                {
                    "name": info.name.removeprefix("evaluator-"),
                    "running": bool(info.num_waiting or info.num_ack_pending),
                    "waiting": info.num_pending or 0,
                    "in_hand": info.num_ack_pending or 0,
                }
                for info in await topology.list_evaluators(bus.js)
            ]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
            return
        for row in rows:
            attended = "running" if row["running"] else "nobody runs it"
            typer.echo(f"{row['name']:<24} {attended}, {row['waiting']} waiting, {row['in_hand']} in hand")

    run(work())


@app.command()
def remove(name: Name) -> None:
    """Delete an evaluator's consumer; migrations that require it stop with `silent_evaluator`."""
    from llamaduo.bus import topology
    from llamaduo.cli.connect import run, the_bus
    from llamaduo.errors import UserInputError

    async def work() -> None:
        async with the_bus() as bus:
            if not await topology.remove_evaluator(bus.js, name):
                raise UserInputError(f"there is no evaluator {name!r}", hint="see `llamaduo evaluator list`")
        typer.echo(f"{name} is gone")

    run(work())


@app.command("run")
def run_one(
    target: Annotated[str, typer.Argument(help="`file.py:object` or `package.module:object`.")],
) -> None:
    """Run an evaluator as a process of its own until it is stopped.

    The object is made with the decorator `llamaduo.evaluators.evaluator`; see docs/evaluators.md.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.state import NATS_VARIABLE, nats_url, state_dir

    evaluator = load(target)
    os.environ.setdefault(NATS_VARIABLE, nats_url(state_dir()))
    run(check_place(evaluator.name, os.environ[NATS_VARIABLE]))
    from llamaduo.evaluating import run_evaluator

    typer.echo(f"running evaluator {evaluator.name}, version {evaluator.version}; Ctrl-C stops it", err=True)
    run_evaluator(evaluator)


async def check_place(name: str, url: str) -> None:
    """LlamaDuoError if no bus answers; UserInputError if this evaluator has no place on it."""
    from llamaduo.bus import topology
    from llamaduo.bus.connection import Bus
    from llamaduo.cli.connect import check_answers
    from llamaduo.errors import UserInputError
    from llamaduo.settings import ServiceSettings, read_settings

    await check_answers(url)
    # Under its own name: a user of the bus that may only mark reads no replies but its own.
    durable = topology.durable_for_evaluator(name).name
    bus = await Bus.connect(read_settings(ServiceSettings), durable)
    try:
        if not await topology.has_durable(bus.js, durable):
            raise UserInputError(f"evaluator {name} has no place on the bus", hint=topology.how_to_make(durable))
    finally:
        await bus.close()


def load(target: str) -> Evaluator:
    """The evaluator that `file.py:object` or `module:object` names. UserInputError where there is none."""
    from llamaduo.errors import UserInputError
    from llamaduo.evaluators import Evaluator

    where, _, attribute = target.rpartition(":")
    if not where or not attribute.isidentifier():
        raise UserInputError(f"{target!r} is not `file.py:object` or `module:object`", field="TARGET")
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise UserInputError("no such file", file=where)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise UserInputError("cannot be read as Python", file=where)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(where)
    except UserInputError:
        raise
    except SyntaxError as error:
        raise UserInputError(f"not Python: {error.msg}", file=error.filename or where, line=error.lineno) from error
    except ModuleNotFoundError as error:
        raise UserInputError(f"cannot import {where}: {error}", field="TARGET") from error
    except (Exception, SystemExit) as error:
        place = _place_in(error, where)
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserInputError(f"cannot be loaded: {why}", file=where, line=place) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Evaluator):
        names = [name for name, value in vars(module).items() if isinstance(value, Evaluator)]
        raise UserInputError(
            f"{attribute!r} in {where} is no evaluator",
            hint=f"it has {', '.join(names)}" if names else "make one with @evaluator from llamaduo.evaluators",
        )
    return found


def _place_in(error: BaseException, file: str) -> int | None:
    """The line of this file in which an error came up."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == file or Path(f.filename) == Path(file)), None)
