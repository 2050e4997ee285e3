"""`llamaduo keys`: who may call our HTTP APIs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Keys for the HTTP APIs of ours.", no_args_is_help=True)

File = Annotated[Path, typer.Option("--file", help="The file of keys.", envvar="LLAMADUO_API_KEYS_FILE")]
Name = Annotated[str, typer.Argument(help="Whose key it is.")]


@app.command()
def new(name: Name, file: File) -> None:
    """Make a key and print it, once: only its digest is kept."""
    from llamaduo.api_keys import new_key

    key = new_key(file, name)
    typer.echo(key)
    typer.echo(f"{name} was added to {file}; this key is not shown again", err=True)


@app.command("list")
def list_keys(file: File) -> None:
    """Whose keys there are, and since when."""
    from llamaduo.api_keys import read_keys

    for one in read_keys(file):
        typer.echo(f"{one.made}  {one.name}")


@app.command()
def drop(name: Name, file: File) -> None:
    """Take a key back; services that read this file refuse it at once."""
    from llamaduo.api_keys import drop_key

    drop_key(file, name)
    typer.echo(f"{name} is gone from {file}")
