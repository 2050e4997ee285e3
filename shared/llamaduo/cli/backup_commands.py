"""`llamaduo backup` and `llamaduo restore`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.bus.backup_place import Manifest
    from llamaduo.bus.connection import Bus

MIB = 1024**2


def backup(
    target: Annotated[str, typer.Argument(help="A folder, or an object store by URL (s3://bucket/prefix, …).")],
) -> None:
    """Copy the log, dead letters, job records, ledger, budgets and artifacts, while everything runs.

    Where nothing runs, the state folder's own bus is started for as long as it takes. A folder can be used again:
    artifacts that are there are not copied again, and the new backup takes the place of the old one once it is whole.
    """
    from llamaduo.bus.backing_up import back_up
    from llamaduo.bus.backup_place import Place
    from llamaduo.cli.connect import run
    from llamaduo.cli.state import state_dir

    async def work() -> None:
        place = Place(target, make=True)
        async with _a_bus(start=(state_dir() / "nats").is_dir()) as bus:
            with _progress() as told:
                manifest = await back_up(bus, place, told)
        for line in manifest.missing:
            typer.echo(f"not in the backup, for the store does not have it: {line}", err=True)
        typer.echo(f"{place.where}: {_contents(manifest)}")

    run(work())


def restore(
    source: Annotated[str, typer.Argument(help="Where the backup is: a folder, or an object store by URL.")],
) -> None:
    """Put a backup on an empty bus, so that unfinished migrations go on there.

    Where nothing runs, this is the state folder's own bus: call `llamaduo up` afterwards. Stopped in the middle, call
    it again. A bus that holds anything else is refused, and so is a backup that is not whole.
    """
    from llamaduo.bus.backup_place import Place
    from llamaduo.bus.restoring import restore as put_back
    from llamaduo.cli.connect import run

    async def work() -> None:
        place = Place(source)
        await place.manifest()
        async with _a_bus(start=True) as bus:
            with _progress() as told:
                restored = await put_back(bus, place, told, profile=bus.settings.profile)
        for name in restored.unknown:
            typer.echo(f"durable {name} is not known to this version and was left out", err=True)
        if restored.already:
            typer.echo("this backup is on the bus already")
        else:
            typer.echo(f"restored: {_contents(restored.manifest)}; start the services: llamaduo up")

    run(work())


def _contents(manifest: Manifest) -> str:
    events, letters = manifest.streams["EVENTS"].lines, manifest.streams["DEAD_LETTERS"].lines
    return (
        f"{events} events, {letters} dead letters, {manifest.artifacts.lines} artifacts "
        f"({manifest.artifact_bytes / MIB:.1f} MiB), as of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC"
    )


@contextlib.asynccontextmanager
async def _a_bus(*, start: bool) -> AsyncIterator[Bus]:
    """The bus that was named or runs on the state folder; else, with `start`, the folder's own, started for this.

    No `up` can start meanwhile. LlamaDuoError, with what to do, where there is none.
    """
    from llamaduo.cli.connect import the_bus
    from llamaduo.cli.state import NATS_VARIABLE, exclusive, read_note, state_dir
    from llamaduo.cli.system import own_server

    state = state_dir()
    if os.environ.get(NATS_VARIABLE) or read_note(state) is not None or not start:
        async with the_bus() as bus:
            yield bus
        return
    with exclusive(state):
        async with own_server(state) as url:
            os.environ[NATS_VARIABLE] = url
            try:
                async with the_bus() as bus:
                    yield bus
            finally:
                del os.environ[NATS_VARIABLE]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part where stderr is a terminal, else a line when a part is done."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: typer.echo(f"{what}: {total}", err=True) if done == total else None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bars:

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield told
