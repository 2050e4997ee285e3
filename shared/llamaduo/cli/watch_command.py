"""`llamaduo watch`: follow a migration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.bus.progress import Progress

PROGRESS_EVERY_S = 10.0
REFRESH_S = 0.5
STALE_S = 60.0


def watch(
    migration: Annotated[str | None, typer.Argument(help="Id, its beginning, or name; default: newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every event as a line of JSON.")] = False,
) -> None:
    """Follow a migration live: rounds, stage, steps, rows judged, marks against the gate, money.

    Ends with the migration: exit code 0 if it completed, 1 if it was stopped or cancelled.
    """
    from llamaduo.cli.connect import all_views, choose, run, the_bus

    async def work() -> int:
        async with the_bus() as bus:
            return await follow(bus, choose(await all_views(bus), migration).migration, as_json=as_json)

    raise typer.Exit(run(work()))


async def follow(bus: Bus, migration: str, *, as_json: bool = False) -> int:
    """Show a migration until it ends; 0 if it completed, else 1. Plain lines where stdout is no terminal."""
    from llamaduo.cli.watching import line_of, line_of_progress, picture
    from llamaduo.events import MigrationCompleted
    from llamaduo.migrations.fold import MigrationView
    from llamaduo.migrations.report import build_report

    view = MigrationView(migration)
    work: dict[str, Progress] = {}
    live_picture = sys.stdout.isatty() and not as_json

    def current() -> dict[str, Progress]:
        now = datetime.now(UTC)
        return {key: p for key, p in work.items() if (now - p.at).total_seconds() < STALE_S and p.done < p.total}

    def say(text: str, when: datetime) -> None:
        if not live_picture and not as_json:
            typer.echo(f"{when.astimezone():%H:%M:%S} {text}")

    async def listen() -> None:
        told: dict[str, float] = {}
        async for progress in bus.watch_progress():
            if progress.migration != migration:
                continue
            key = f"{progress.service}/{progress.stage}"
            work[key] = progress
            if time.monotonic() - told.get(key, 0.0) >= PROGRESS_EVERY_S:
                told[key] = time.monotonic()
                say(line_of_progress(progress), progress.at)

    async def read() -> None:
        async for logged in bus.log(None, follow=True):
            if not view.add(logged.event):
                continue
            if as_json:
                typer.echo(logged.event.model_dump_json())
            elif (line := line_of(logged.event)) is not None:
                say(line, logged.event.at)
            if view.ended:
                return

    async def draw() -> None:
        from rich.live import Live

        with Live(refresh_per_second=4) as live:
            while True:
                live.update(picture(build_report(view, datetime.now(UTC)), current()))
                if view.ended:
                    return
                await asyncio.sleep(REFRESH_S)

    beside = [asyncio.create_task(listen())]
    if live_picture:
        beside.append(asyncio.create_task(draw()))
    try:
        await read()
        if live_picture:
            await beside[-1]
    finally:
        for task in beside:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return 0 if isinstance(view.ended, MigrationCompleted) else 1
