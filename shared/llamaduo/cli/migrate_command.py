"""`llamaduo migrate`: check a spec and its data, then submit it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamaduo.cli.data_commands import SKIP_BAD

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.cli.spec_checks import EvaluatorOnBus
    from llamaduo.cli.submission import Submission
    from llamaduo.planning.plan import Plan


def migrate(
    spec: Annotated[Path, typer.Argument(help="The migration's YAML file.")],
    watch: Annotated[bool, typer.Option("--watch", help="Stay and watch it to its end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the submission as JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check spec and data; needs no bus and no key.")
    ] = False,
    service_llm_url: Annotated[str | None, typer.Option(help="Another address of the service LLM.")] = None,
    service_llm: Annotated[str | None, typer.Option(help="Another service LLM, provider:model.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Variable that holds its key.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
    submission: Annotated[int, typer.Option(min=1, help="Raise it to run the very same migration once more.")] = 1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before submitting.")] = False,
) -> None:
    """Submit a migration; its id is printed. The same spec and data again are the same migration.

    Everything in the spec and the dataset is checked before anything starts, and what it will take is said; in a
    terminal it asks once.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.data_commands import tell_skipped
    from llamaduo.cli.plan_command import planned
    from llamaduo.cli.state import read_note, state_dir
    from llamaduo.cli.submission import Overrides, prepare

    note = read_note(state_dir())
    prepared = prepare(
        spec,
        number=submission,
        overrides=Overrides(service_llm, service_llm_url, api_key_env),
        environment=os.environ,
        key_names_of_services=note.key_names if note else None,
        keys_needed=not check,
        skip_bad=skip_bad,
    )
    tell_skipped(prepared.skipped, len(prepared.rows))
    plan = planned(prepared)
    if check:
        _say(prepared, prepared.notes, new=None, as_json=as_json, plan=plan)
        return
    if not as_json:
        _show(plan)
        asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
        if asks and not typer.confirm("submit it?", default=True):
            typer.echo("nothing was submitted", err=True)
            raise typer.Exit(1)
    run(_submit_and_watch(prepared, watch=watch, as_json=as_json))


async def _submit_and_watch(prepared: Submission, *, watch: bool, as_json: bool) -> None:
    from llamaduo.cli.connect import the_bus
    from llamaduo.cli.spec_checks import check_evaluators
    from llamaduo.cli.watch_command import follow

    async with the_bus() as bus:
        notes = [*prepared.notes, *check_evaluators(prepared.file, await evaluators_on(bus))]
        new = await submit(bus, prepared)
        _say(prepared, notes, new=new, as_json=as_json)
        if watch:
            code = await follow(bus, prepared.migration, as_json=as_json)
            raise typer.Exit(code)


async def evaluators_on(bus: Bus) -> list[EvaluatorOnBus]:
    """Evaluators that have a durable; one that holds work or waits for it is attended."""
    from llamaduo.bus import topology
    from llamaduo.cli.spec_checks import EvaluatorOnBus

    infos = await topology.list_evaluators(bus.js)
    return [
        EvaluatorOnBus(info.name.removeprefix("evaluator-"), bool(info.num_waiting or info.num_ack_pending))
        for info in infos
    ]


async def submit(bus: Bus, prepared: Submission) -> bool:
    """Store the rows and publish the request. False if this very migration was submitted before."""
    from llamaduo.artifacts import put_bytes
    from llamaduo.datasets import dump_rows
    from llamaduo.events import MigrationRequested, subject_of

    async for logged in bus.log([subject_of(MigrationRequested)], follow=False):
        if logged.event.migration == prepared.migration:
            return False
    store = await bus.artifacts()
    coverage = await put_bytes(store, dump_rows(prepared.rows), "application/x-ndjson")
    return await bus.publish(
        MigrationRequested(
            migration=prepared.migration,
            submission=prepared.number,
            spec=prepared.spec.model_dump(mode="json"),
            coverage=coverage,
            source="cli",
        )
    )


def _show(plan: Plan) -> None:
    """The plan's three key lines and its notes, beside the output proper."""
    from llamaduo.planning.page import key_lines

    for line in [*key_lines(plan), *(f"note: {note}" for note in plan.notes)]:
        typer.echo(line, err=True)


def _say(
    prepared: Submission, notes: list[str], *, new: bool | None, as_json: bool, plan: Plan | None = None
) -> None:
    """`new` None: it was only checked, and `plan` is shown as well."""
    if as_json:
        body: dict[str, Any] = {
            "migration": prepared.migration,
            "name": prepared.spec.name,
            "rows": len(prepared.rows),
            "skipped": len(prepared.skipped),
            "submission": prepared.number,
            "new": new,
            "notes": notes,
        }
        if plan is not None:
            body["plan"] = plan.model_dump(mode="json")
        typer.echo(json.dumps(body))
        return
    if plan is not None:
        from llamaduo.planning.page import page

        typer.echo(page(plan), err=True)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(prepared.migration)
    if new is None:
        typer.echo(f"{len(prepared.rows)} rows and the spec are sound", err=True)
    elif new:
        typer.echo(f"submitted; follow it with: llamaduo watch {prepared.migration}", err=True)
    else:
        again = f"--submission {prepared.number + 1} runs it once more"
        typer.echo(f"this very migration was submitted before: nothing was started ({again})", err=True)
