"""`llamaduo bootstrap` and `llamaduo schema`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class What(StrEnum):
    """What has a schema."""

    spec = "spec"
    report = "report"
    events = "events"


def bootstrap(
    max_bytes: Annotated[
        int | None, typer.Option(help="The log's limit in bytes, -1 for none; it refuses what is beyond.", min=-1)
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, max=5, help="Keep all of it on so many servers of a cluster: with 3 one may be lost."),
    ] = None,
) -> None:
    """Create or update streams, consumers and buckets on a bus. Safe to repeat; `up` does it by itself."""
    from llamaduo.bus import topology
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            await topology.bootstrap(bus.js, profile=bus.settings.profile, max_bytes=max_bytes, replicas=replicas)
        typer.echo("the bus is set up")

    run(work())


def schema(what: Annotated[What, typer.Argument(help="spec, report or events.")] = What.spec) -> None:
    """Print a JSON Schema: of the migration spec, the report, or the events."""
    if what is What.report:
        from llamaduo.migrations.report import report_schema

        typer.echo(json.dumps(report_schema(), indent=2))
    elif what is What.spec:
        from llamaduo.migrations.spec import MigrationSpec

        typer.echo(json.dumps(MigrationSpec.model_json_schema(), indent=2))
    else:
        from llamaduo.events import EVENT_TYPES

        schemas = {name: model.model_json_schema(mode="serialization") for name, model in EVENT_TYPES.items()}
        typer.echo(json.dumps(schemas, indent=2))
