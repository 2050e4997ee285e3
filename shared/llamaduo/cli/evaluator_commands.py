"""`llamaduo evaluator`: who may mark answers, and running one of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamaduo.cli.processes import CHILD

if TYPE_CHECKING:
    from llamaduo.checker import Checker
    from llamaduo.evaluators import Evaluator
    from llamaduo.event_parts import MetricRange

MOST_ROWS_TRIED = 25

app = typer.Typer(no_args_is_help=True, help="Evaluators: give one a place on the bus, list them, run one.")
Name = Annotated[str, typer.Argument(help="Name of the evaluator, as a spec names it.")]
Target = Annotated[str | None, typer.Argument(help="`file.py:object` or `package.module:object`.")]
Command = Annotated[str | None, typer.Option("--exec", help="A program that marks by JSON lines; no shell is used.")]
CheckerName = Annotated[str | None, typer.Option("--name", help="With --exec: its name in a spec.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="With --exec: `name:low:high`, `:lower` behind it where lower is better; may be repeated."),
]
CheckerVersion = Annotated[str, typer.Option(help="With --exec: raise it when it would mark otherwise.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="With --exec: seconds for one answer, then it abstains.")]


@app.command()
def new(
    name: Name,
    folder: Annotated[Path | None, typer.Option(help="Where to write it; default: ./NAME.")] = None,
) -> None:
    """Write a project to begin an evaluator of your own with: one module, its test, a README. Needs no bus."""
    from llamaduo.cli.new_evaluator import module_of, write_project

    check_name(name, "NAME")
    target = folder or Path(name)
    for path in write_project(name, target):
        typer.echo(f"written: {path}")
    typer.echo(f"try it: llamaduo evaluator check {target / module_of(name)}.py:score")


@app.command()
def add(
    name: Name,
    backfill: Annotated[bool, typer.Option("--backfill", help="From the log's start, not from now.")] = False,
) -> None:
    """Create the consumer of a new evaluator. Safe to repeat."""
    from llamaduo.bus import topology
    from llamaduo.cli.connect import run, the_bus

    check_name(name, "NAME")

    async def work() -> None:
        async with the_bus() as bus:
            await topology.add_evaluator(bus.js, name, profile=bus.settings.profile, backfill=backfill)
            with_users = bus.settings.nats_user is not None
        typer.echo(f"{name} may mark; name it under `evaluators` in a spec, and run it: llamaduo evaluator run …")
        if with_users:
            typer.echo(f"its user of the bus: python -m deploy.nats.users --evaluator {name} (docs/security.md)")

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
    target: Target = None,
    command: Command = None,
    name: CheckerName = None,
    metric: Metrics = None,
    version: CheckerVersion = "1",
    timeout: Timeout = 10.0,
) -> None:
    """Run an evaluator as a process of its own until it is stopped.

    TARGET is an object made with the decorator `llamaduo.evaluators.evaluator`; `--exec` runs a program in any
    language instead. See docs/evaluators.md.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.state import NATS_VARIABLE, nats_url, state_dir

    evaluator, checker = chosen(target, command, name, metric, version, timeout)
    os.environ.setdefault(NATS_VARIABLE, nats_url(state_dir()))
    run(check_place(evaluator.name, os.environ[NATS_VARIABLE]))
    from llamaduo.evaluating import evaluator_service
    from llamaduo.settings import ServiceSettings

    service = evaluator_service(evaluator, ServiceSettings())
    if checker is not None:
        service.on_close(checker.close)
    typer.echo(f"running evaluator {evaluator.name}, version {evaluator.version}; Ctrl-C stops it", err=True)
    service.run()


@app.command()
def check(
    target: Target = None,
    command: Command = None,
    name: CheckerName = None,
    metric: Metrics = None,
    version: CheckerVersion = "1",
    timeout: Timeout = 10.0,
    rows: Annotated[
        str | None,
        typer.Option(help="A coverage dataset to try it on; its own answers and an empty one are marked."),
    ] = None,
    subscriber: Annotated[
        str | None,
        typer.Option(help="A program that is a client of the bus itself; it is tried on a bus of its own."),
    ] = None,
) -> None:
    """Try an evaluator: range, redelivery, poison rows, pace. Exit code 1 if it breaks a rule. Needs no bus."""
    from llamaduo.cli.connect import run
    from llamaduo.conformance import SAMPLE, examine
    from llamaduo.coverage_files import read_coverage
    from llamaduo.datasets import ShardRow
    from llamaduo.errors import UserInputError

    if subscriber is not None:
        if target or command or metric or rows:
            raise UserInputError("a program on the bus is tried with --name and --subscriber alone")
        if not run(_kept_on_bus(subscriber, name)):
            raise typer.Exit(1)
        return
    evaluator, checker = chosen(target, command, name, metric, version, timeout)
    tried = SAMPLE
    if rows is not None:
        tried = [
            ShardRow(
                row=row.id,
                messages=row.prompt,
                reference=row.answer,
                answers=[row.answer, ""],
                meta=row.meta,
                response_format=row.response_format,
                tools=row.tools,
            )
            for row in read_coverage(rows)[:MOST_ROWS_TRIED]
        ]

    async def work() -> bool:
        kept = True
        try:
            async for one in examine(evaluator, tried):
                typer.echo(f"{one.state:<7} {one.name:<17} {one.detail}")
                kept = kept and one.state != "failed"
        finally:
            if checker is not None:
                await checker.close()
        return kept

    if not run(work()):
        raise typer.Exit(1)


async def _kept_on_bus(command: str, name: str | None) -> bool:
    from llamaduo.cli.subscriber_check import check_subscriber
    from llamaduo.conformance_on_bus import PATIENCE_S

    if name is None:
        raise no_name()
    check_name(name, "--name")
    kept = True
    async for one in check_subscriber(name, words_of(command, "--subscriber"), PATIENCE_S):
        typer.echo(f"{one.state:<7} {one.name:<17} {one.detail}")
        kept = kept and one.state != "failed"
    return kept


def no_name() -> Exception:
    """UserInputError for a program without one."""
    from llamaduo.errors import UserInputError

    return UserInputError("a program needs a name", field="--name")


def words_of(command: str, field: str) -> list[str]:
    """A program by its absolute path, and its arguments. UserInputError where there is no such program."""
    from llamaduo.errors import UserInputError

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserInputError(f"{command!r}: {str(error).lower()}", field=field) from error
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise UserInputError(f"{command!r}: no such program, or it may not be executed", field=field)
    return [str(Path(program).absolute()), *words[1:]]


def chosen(
    target: str | None, command: str | None, name: str | None, metrics: list[str] | None, version: str, timeout: float
) -> tuple[Evaluator, Checker | None]:
    """The evaluator that the command line names: an object, or a program with what it is said to mark."""
    from llamaduo.checker import Checker, Declared, checker_evaluator
    from llamaduo.errors import UserInputError

    if (target is None) == (command is None):
        raise UserInputError("name either an object, `file.py:object`, or a program with --exec")
    if command is None:
        if name or metrics:
            raise UserInputError("--name and --metric go with --exec; an object declares its own")
        return load(str(target)), None
    if name is None:
        raise no_name()
    check_name(name, "--name")
    argv = words_of(command, "--exec")
    # By way of `child.py` it ends when we die, however we die.
    checker = Checker([sys.executable, str(CHILD), str(os.getpid()), *argv], timeout)
    declared = Declared(name, version, dict(map(metric_of, metrics or ["score:0:1"])))
    return checker_evaluator(declared, checker), checker


def metric_of(text: str) -> tuple[str, MetricRange]:
    """`name:low:high`, and `:lower` behind it where lower is better. UserInputError where it is not that."""
    from llamaduo.errors import UserInputError
    from llamaduo.event_parts import MetricRange

    match = re.fullmatch(r"([a-z][a-z0-9_-]{0,40}):(-?[0-9.]+):(-?[0-9.]+)(:lower)?", text)
    try:
        if match is None or not -math.inf < float(match[2]) < float(match[3]) < math.inf:
            raise ValueError
        return match[1], MetricRange(low=float(match[2]), high=float(match[3]), higher_is_better=not match[4])
    except ValueError:
        raise UserInputError(f"{text!r} is not `name:low:high`, e.g. score:0:1", field="--metric") from None


def check_name(name: str, field: str) -> None:
    """UserInputError where a spec could not name an evaluator so."""
    from llamaduo.errors import UserInputError

    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise UserInputError(f"{name!r} is no name: lower-case letters, digits and dashes", field=field)


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
