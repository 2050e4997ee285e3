"""`llamaduo data`: look at a coverage dataset before it is submitted. `llamaduo merge`: make one of several."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

if TYPE_CHECKING:
    from llamaduo.coverage_files import BadLine
    from llamaduo.coverage_rows import Columns

app = typer.Typer(no_args_is_help=True, help="Coverage datasets: check one and count what is in it.")

# A square bracket is the help's own mark-up where it is not escaped.
SOURCE = r"JSON lines, a JSON array, CSV or Parquet; or hf://owner/name\[@revision]\[:config]\[/split]."
SKIP_BAD = "Go on without the bad lines; each is listed."
COLUMN = "OURS=THEIRS where a column has another name; may be repeated."


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help=SOURCE)],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
    column: Annotated[list[str] | None, typer.Option("--column", help=COLUMN)] = None,
    base_model: Annotated[
        Path | None, typer.Option(help="A model folder: its tokenizer then counts the tokens.")
    ] = None,
) -> None:
    """Read and check a dataset: rows, repeats, near copies, lengths, labels, and what its test split can tell."""
    from llamaduo.cli.data_facts import facts_of, token_counter
    from llamaduo.coverage_files import sound

    count = token_counter(base_model)
    found = sound(file, columns_of(column or []), skip_bad=skip_bad)
    tell_skipped(found.bad, len(found.rows))
    facts = facts_of(list(found.rows.values()), found.repeats, len(found.bad), count)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            typer.echo(name)
            for label, share in value.items():
                typer.echo(f"  {share!s:<22} {label}")
        else:
            typer.echo(f"{name:<24} {value}")


def merge(
    out: Annotated[Path, typer.Argument(help="The file to write: JSON lines, sorted.")],
    files: Annotated[list[str], typer.Argument(help="Datasets of any kind, or files that `merge` wrote.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
) -> None:
    """Merge datasets into one: each row once, your own before generated ones.

    Order does not matter, and merging again changes nothing. OUT may be one of the files.
    """
    from llamaduo.coverage_files import sound
    from llamaduo.datasets import dump_rows, merge_rows

    read = [sound(file, skip_bad=skip_bad, generated=True) for file in files]
    bad = [line for one in read for line in one.bad]
    tell_skipped(bad, sum(len(one.rows) for one in read))
    rows = merge_rows(*(one.rows.values() for one in read))
    replace_whole(out, dump_rows(rows))
    own = sum(row.source == "coverage" for row in rows)
    typer.echo(f"{out}: {len(rows)} rows, {own} of them your own")


def replace_whole(out: Path, body: bytes) -> None:
    """Writes a file whole or not at all: it may be one that was just read. OSError where it cannot be written."""
    handle, name = tempfile.mkstemp(dir=out.absolute().parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        # A temporary file is the owner's alone; the result is as any other file.
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def columns_of(pairs: Sequence[str]) -> Columns:
    """`OURS=THEIRS` of the command line as a mapping. UserInputError for what is none."""
    from llamaduo.errors import UserInputError
    from llamaduo.migrations.spec import Column
    from llamaduo.names import did_you_mean

    known = get_args(Column)
    found: dict[str, str] = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if ours not in known:
            near = did_you_mean(ours, known) or f"one of {', '.join(known)}"
            raise UserInputError(f"{ours!r} is no column of ours", field="--column", hint=near)
        if not theirs:
            raise UserInputError(f"{pair!r} is not OURS=THEIRS", field="--column", hint="e.g. prompt=question")
        found[ours] = theirs
    return cast("Columns", found)


def tell_skipped(bad: Sequence[BadLine], left: int) -> None:
    """Lists bad lines that are left out, each with its reason, on standard error."""
    for line in bad:
        typer.echo(f"skipped: {line}", err=True)
    if bad:
        typer.echo(f"{len(bad)} bad lines were skipped, {left} rows are left", err=True)
