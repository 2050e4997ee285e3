"""`llamaduo dlq`: messages that could not be worked on."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Dead letters: look at them, put them back, or drop them.")
Letter = Annotated[str, typer.Argument(help="Id of a dead letter, or its beginning.")]


@app.command("list")
def list_letters(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """All dead letters, oldest first."""
    from llamaduo.bus.dead_letters import list_dead
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            letters = await list_dead(bus)
        if as_json:
            keys = ("id", "subject", "consumer", "migration", "error", "attempts")
            rows = [{key: getattr(dead, key) for key in keys} | {"at": dead.at.isoformat()} for dead in letters]
            typer.echo(json.dumps(rows, indent=2))
            return
        if not letters:
            typer.echo("no dead letters")
        for dead in letters:
            first = dead.error.splitlines()[0] if dead.error else ""
            typer.echo(f"{dead.id[:16]}  {dead.at:%Y-%m-%d %H:%M}  {dead.consumer}  {dead.subject}  {first}")

    run(work())


@app.command()
def show(letter: Letter) -> None:
    """One dead letter with its reason and its whole body."""
    from llamaduo.bus.dead_letters import find_dead
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            dead = await find_dead(bus, letter)
        for name in ("id", "at", "subject", "consumer", "migration", "attempts", "error"):
            typer.echo(f"{name}: {getattr(dead, name)}")
        body = dead.body.decode("utf-8", "backslashreplace")
        try:
            body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        except ValueError:
            typer.echo("(the body is not JSON)")
        typer.echo(body)

    run(work())


@app.command()
def replay(letter: Letter) -> None:
    """Put a message back on its subject, with all its tries again, and drop the letter."""
    from llamaduo.bus.dead_letters import find_dead
    from llamaduo.bus.dead_letters import replay as put_back
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            dead = await find_dead(bus, letter)
            await put_back(bus, dead)
        typer.echo(f"{dead.subject} was put back for {dead.consumer}")

    run(work())


@app.command()
def drop(letter: Letter) -> None:
    """Delete a dead letter for good."""
    from llamaduo.bus.dead_letters import drop as delete
    from llamaduo.bus.dead_letters import find_dead
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            dead = await find_dead(bus, letter)
            await delete(bus, dead)
        typer.echo(f"{dead.id} is gone")

    run(work())
