"""`llamaduo report` and `llamaduo status`: what came out, and what is going on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.cli.state import ChildNote
    from llamaduo.migrations.fold import MigrationView
    from llamaduo.migrations.report import Report


def report(
    migration: Annotated[str | None, typer.Argument(help="Id, its beginning, or name; default: newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page to this file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json and report.html to this folder.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the chart of marks to this SVG file.")] = None,
    answers: Annotated[int, typer.Option(min=0, help="Prompts to show side by side in the page.")] = 12,
) -> None:
    """The report of a migration: marks with intervals, data, seconds per stage, calls, warnings.

    Its fields are described in docs/report.md and docs/contract/report.schema.json.
    """
    from llamaduo.cli.connect import all_views, choose, run, the_bus
    from llamaduo.cli.watching import summary
    from llamaduo.errors import UserInputError
    from llamaduo.migrations.report import build_report
    from llamaduo.migrations.report_html import report_picture

    async def work() -> None:
        async with the_bus() as bus:
            view = choose(await all_views(bus), migration)
            made = build_report(view, datetime.now(UTC))
            if out is not None:
                await write_report(bus, view, made, out / "report.json", out / "report.html", answers)
            if html is not None:
                await write_report(bus, view, made, None, html, answers)
        if picture is not None:
            try:
                picture.write_text(report_picture(made), "utf-8")
            except ValueError as error:
                raise UserInputError(str(error), field="--picture") from error
        if as_json:
            typer.echo(made.model_dump_json(indent=2))
        else:
            typer.echo(summary(made))
            files = [html, picture, *((out / "report.json", out / "report.html") if out else ())]
            for path in [file for file in files if file is not None]:
                typer.echo(f"written: {path}")

    run(work())


async def write_report(
    bus: Bus, view: MigrationView, made: Report, json_file: Path | None, html_file: Path, answers: int = 12
) -> None:
    """Write the report's files; folders are made where they are missing."""
    from llamaduo.cli.side_by_side import gather
    from llamaduo.migrations.report_html import report_html

    beside = await gather(await bus.artifacts(), view, answers)
    for file in (json_file, html_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if json_file is not None:
        json_file.write_text(made.model_dump_json(indent=2) + "\n", "utf-8")
    html_file.write_text(report_html(made, beside), "utf-8")


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """All migrations and, where `llamaduo up` runs here, its services."""
    from llamaduo.cli.connect import all_views, run, the_bus
    from llamaduo.cli.state import read_note, state_dir

    async def work() -> None:
        note = read_note(state_dir())
        services = [await _service_row(child) for child in note.children] if note else []
        async with the_bus() as bus:
            rows = [migration_row(view) for view in reversed((await all_views(bus)).values())]
        if as_json:
            typer.echo(json.dumps({"services": services, "migrations": rows}, indent=2))
            return
        for service in services:
            again = f", started again {service['restarts']} times" if service["restarts"] else ""
            typer.echo(f"{service['name']:<20} {service['state']} (pid {service['pid']}{again})")
        if services:
            typer.echo("")
        if not rows:
            typer.echo("no migrations yet")
        for row in rows:
            typer.echo(line_of_migration(row))
            for line in why_it_stands(row):
                typer.echo(f"    {line}")

    run(work())


async def _service_row(child: ChildNote) -> dict[str, object]:
    from llamaduo.cli.state import state_dir
    from llamaduo.cli.system import port_file, state_of

    try:
        # From the service's own file: `up.json` was written before the service chose its port.
        port = int(port_file(state_dir(), child.name).read_text("ascii"))
    except (OSError, ValueError):
        port = None
    state = await state_of(child.name, child.pid, port, child.started)
    return {"name": child.name, "pid": child.pid, "restarts": child.restarts, "state": state}


def migration_row(view: MigrationView) -> dict[str, object]:
    """What `status` says of a migration."""
    from llamaduo.cli.watching import show_marks
    from llamaduo.events import MigrationCancelled, MigrationStopped
    from llamaduo.migrations.stop_advice import next_thing_to_do

    decided = [decision for n in view.rounds if (decision := view.decision(n)) is not None]
    return {
        "migration": view.migration,
        "name": view.spec.name if view.spec else "?",
        "stage": view.stage,
        "round": view.rounds[-1] if view.rounds else None,
        "requested_at": view.request.at.isoformat() if view.request else None,
        "marks": show_marks(decided[-1].marks) if decided else "",
        "rule": view.ended.rule if isinstance(view.ended, MigrationStopped) else None,
        "reason": view.ended.reason if isinstance(view.ended, MigrationStopped | MigrationCancelled) else "",
        "what_to_do": next_thing_to_do(view),
        "dead_letters": len(view.failures),
    }


def line_of_migration(row: Mapping[str, object]) -> str:
    """A migration in one line: what there is to say, and nothing of what there is not."""
    letters = row["dead_letters"]
    parts = [
        str(row["migration"]),
        str(row["name"]),
        f"{row['stage']} ({row['rule']})" if row["rule"] else str(row["stage"]),
        f"round {row['round']}" if row["round"] is not None else "no round yet",
        str(row["marks"]),
        f"{letters} dead letter{'s' if letters != 1 else ''} (llamaduo dlq list)" if letters else "",
    ]
    return "  ".join(part for part in parts if part)


def why_it_stands(row: Mapping[str, object]) -> list[str]:
    """Why a migration does not go on, and what to do; nothing where it does or has completed."""
    todo = row["what_to_do"]
    return [str(line) for line in (row["reason"], f"what to do: {todo}" if todo else "") if line]
