"""`llamaduo init`: the first spec for a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def init(
    data: Annotated[Path, typer.Argument(help="The coverage dataset, JSON lines.")],
    out: Annotated[Path, typer.Option(help="The spec to write.")] = Path("migration.yaml"),
    name: Annotated[str | None, typer.Option(help="The migration's name; default: the dataset's.")] = None,
    service_llm: Annotated[str, typer.Option(help="Who does the task today, provider:model.")] = "openai:gpt-4o",
    base_model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf; default: by this machine.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a spec that is there.")] = False,
) -> None:
    """Write a commented migration.yaml for a dataset: look at its rows, choose evaluators, gate, model and recipe.

    It is a beginning that passes `llamaduo migrate --check`, not an optimum.
    """
    from llamaduo.cli.plan_command import planned
    from llamaduo.cli.submission import prepare
    from llamaduo.coverage_files import read_coverage
    from llamaduo.errors import UserInputError
    from llamaduo.migrations.spec_file import parse_spec
    from llamaduo.planning.draft import draft_spec
    from llamaduo.planning.machine import this_machine
    from llamaduo.planning.page import key_lines

    rows = read_coverage(data)
    if out.exists() and out.samefile(data):
        raise UserInputError("is the dataset itself", file=str(out), hint="--out names the spec to write")
    if out.exists() and not force:
        raise UserInputError("is there already", file=str(out), hint="--force writes over it, --out names another")
    try:
        text = draft_spec(
            rows,
            name=name or name_of(data),
            coverage=os.path.relpath(data.resolve(), out.resolve().parent),
            machine=this_machine(),
            service_llm=service_llm,
            base_model=_as_seen_from(base_model, out),
        )
    except UserInputError as error:
        raise UserInputError(error.message, file=str(data), hint=error.hint) from error
    parse_spec(text, str(out))  # a name or model of the command line that is none, before anything is written
    out.write_text(text, "utf-8")
    prepared = prepare(out, environment=os.environ, keys_needed=False)
    plan = planned(prepared)
    for line in [*key_lines(plan), *(f"note: {note}" for note in [*prepared.notes, *plan.notes])]:
        typer.echo(line, err=True)
    typer.echo(str(out))


def name_of(data: Path) -> str:
    """A migration's name from a file's; `migration` where it gives none."""
    from llamaduo.migrations.spec import NAME_PATTERN
    from llamaduo.migrations.spec_file import likely_value

    found = likely_value(NAME_PATTERN, data.stem)
    return found.split("'")[1] if found else "migration"


def _as_seen_from(base_model: str | None, out: Path) -> str | None:
    """A path as it must stand in the spec, which may lie elsewhere; Hub ids as they are."""
    if base_model is None or not Path(base_model).expanduser().exists():
        return base_model
    return os.path.relpath(Path(base_model).expanduser().resolve(), out.resolve().parent)
