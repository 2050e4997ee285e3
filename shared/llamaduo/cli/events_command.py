"""`llamaduo events`: the log of a migration as it is."""

from __future__ import annotations

from typing import Annotated

import typer


def events(
    migration: Annotated[str | None, typer.Argument(help="Id, its beginning, or name; default: newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Whole events, one JSON object a line.")] = False,
) -> None:
    """Every event of a migration, oldest first: sequence, time, who, what."""
    from llamaduo.cli.connect import all_views, choose, run, the_bus
    from llamaduo.cli.watching import line_of

    async def work() -> None:
        async with the_bus() as bus:
            chosen = choose(await all_views(bus), migration).migration
            async for logged in bus.log(None, follow=follow):
                event = logged.event
                if event.migration != chosen:
                    continue
                if as_json:
                    typer.echo(event.model_dump_json())
                else:
                    what = line_of(event) or " ".join(str(part) for part in event.job_key())
                    typer.echo(f"{logged.seq:>6} {event.at:%H:%M:%S} {event.type:<24} {event.source:<28} {what}")

    run(work())
