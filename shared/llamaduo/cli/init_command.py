"""`llamaduo init`: the first spec for a dataset."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from llamaduo.cli.data_commands import COLUMN, SKIP_BAD


def init(
    data: Annotated[
        str, typer.Argument(help="The coverage dataset: a file of any kind that is read, or hf://owner/name.")
    ],
    out: Annotated[Path, typer.Option(help="The spec to write.")] = Path("migration.yaml"),
    name: Annotated[str | None, typer.Option(help="The migration's name; default: the dataset's.")] = None,
    service_llm: Annotated[str, typer.Option(help="Who does the task today, provider:model.")] = "openai:gpt-4o",
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Hub id, folder or .gguf; default: by this machine. Several times: the smallest that passes wins."
        ),
    ] = None,
    column: Annotated[list[str] | None, typer.Option("--column", help=COLUMN)] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a spec that is there.")] = False,
) -> None:
    """Write a commented migration.yaml for a dataset: look at its rows, choose evaluators, gate, model and recipe.

    It is a beginning that passes `llamaduo migrate --check`, not an optimum; what would not pass is not written.
    """
    from llamaduo.cli.data_commands import columns_of, tell_skipped
    from llamaduo.cli.plan_command import planned
    from llamaduo.cli.submission import check
    from llamaduo.coverage_files import sound
    from llamaduo.errors import UserInputError
    from llamaduo.hub_datasets import ON_THE_HUB
    from llamaduo.migrations.spec_file import spec_at
    from llamaduo.planning.draft import draft_spec
    from llamaduo.planning.machine import this_machine
    from llamaduo.planning.page import key_lines

    columns, on_the_hub = columns_of(column or []), data.startswith(ON_THE_HUB)
    found = sound(data, columns, skip_bad=skip_bad)
    tell_skipped(found.bad, len(found.rows))
    if out.exists() and not on_the_hub and out.samefile(data):
        raise UserInputError("is the dataset itself", file=str(out), hint="--out names the spec to write")
    if out.exists() and not force:
        raise UserInputError("is there already", file=str(out), hint="--force writes over it, --out names another")
    try:
        text = draft_spec(
            list(found.rows.values()),
            name=name or name_of(data),
            coverage=data if on_the_hub else os.path.relpath(Path(data).resolve(), out.resolve().parent),
            machine=this_machine(),
            service_llm=service_llm,
            base_models=[_as_seen_from(base, out) for base in base_model or []],
            columns=columns,
        )
    except UserInputError as error:
        raise UserInputError(error.message, file=data, hint=error.hint) from error
    try:
        prepared = check(spec_at(out, text), environment=os.environ, keys_needed=False, skip_bad=skip_bad)
    except UserInputError as error:
        if error.file != str(out):
            raise
        # There is no such file yet whose line could be named.
        raise UserInputError(error.message, field=error.field, hint=error.hint) from error
    out.write_text(text, "utf-8")
    plan = planned(prepared)
    for line in [*key_lines(plan), *(f"note: {note}" for note in [*prepared.notes, *plan.notes])]:
        typer.echo(line, err=True)
    typer.echo(str(out))


def name_of(data: str) -> str:
    """A migration's name from the last part of a path or address; `migration` where that gives none."""
    from llamaduo.hub_datasets import ON_THE_HUB, parse_address
    from llamaduo.migrations.spec_file import likely_name

    last = parse_address(data).repo.rpartition("/")[2] if data.startswith(ON_THE_HUB) else PurePosixPath(data).stem
    return likely_name(last) or "migration"


def _as_seen_from(base_model: str, out: Path) -> str:
    """A path as it must stand in the spec, which may lie elsewhere; Hub ids as they are."""
    if not Path(base_model).expanduser().exists():
        return base_model
    return os.path.relpath(Path(base_model).expanduser().resolve(), out.resolve().parent)
