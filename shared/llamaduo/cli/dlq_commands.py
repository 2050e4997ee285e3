"""`llamaduo dlq`: messages that could not be worked on."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.bus.dead_letters import DeadLetter

app = typer.Typer(no_args_is_help=True, help="Dead letters: look at them, put them back, or drop them.")
Letter = Annotated[str, typer.Argument(help="Id of a dead letter, or its beginning.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command("list")
def list_letters(
    migration: Annotated[str | None, typer.Option(help="Only of this migration: its id, or the beginning.")] = None,
    consumer: Annotated[str | None, typer.Option(help="Only of this consumer, e.g. trainer or llm-judge.")] = None,
    gone: Annotated[bool, typer.Option("--gone", help="Those that were put back or dropped instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """All dead letters, oldest first."""
    from llamaduo.bus.dead_letters import Trace, list_dead, traces
    from llamaduo.cli.connect import run, the_bus

    def wanted(one: DeadLetter | Trace) -> bool:
        names = (one.consumer, one.consumer.removeprefix("evaluator-"))
        return one.migration.startswith(migration or "") and (consumer is None or consumer in names)

    async def work() -> None:
        async with the_bus() as bus:
            letters = [one for one in (await traces(bus) if gone else await list_dead(bus)) if wanted(one)]
        if as_json:
            typer.echo(json.dumps([_told(one) for one in letters], indent=2))
            return
        if not letters:
            typer.echo("no dead letters" + (" like that" if migration or consumer else ""))
        for one in letters:
            what = f"  {one.what} by {one.by or 'somebody'}" if isinstance(one, Trace) else ""
            line = f"{one.id[:16]}  {one.at:%Y-%m-%d %H:%M}{what}  {one.consumer}  {one.subject}  {one.error}"
            typer.echo(_printable(line)[:LONGEST_LINE])

    run(work())


@app.command()
def show(letter: Letter, as_json: AsJson = False) -> None:
    """One dead letter with its reason and its whole body."""
    from llamaduo.bus.dead_letters import find_dead
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            dead = await find_dead(bus, letter)
        body = dead.body.decode("utf-8", "backslashreplace")
        if as_json:
            typer.echo(json.dumps(_told(dead) | {"body": body}, indent=2))
            return
        for name in ("id", "at", "subject", "consumer", "migration", "attempts", "error"):
            typer.echo(f"{name}: {_printable(str(getattr(dead, name)))}")
        if dead.cut_from is not None:
            typer.echo(f"(the first {len(dead.body)} of {dead.cut_from} bytes)")
        try:
            body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            typer.echo("(the body is not JSON)")
        for line in body.split("\n"):
            typer.echo(_printable(line))

    run(work())


@app.command()
def replay(letter: Letter) -> None:
    """Put a message back on its subject, with all its tries again, and drop the letter; once, however often asked."""
    from llamaduo.bus.dead_letters import LetterGone, find_dead
    from llamaduo.bus.dead_letters import replay as put_back
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            try:
                dead = await find_dead(bus, letter)
            except LetterGone as gone:
                if gone.trace.what != "put back":
                    raise
                typer.echo(f"{gone}: it is not put back again")
                return
            await put_back(bus, dead, getpass.getuser())
        typer.echo(f"{_printable(dead.subject)} was put back for {_printable(dead.consumer)}")

    run(work())


@app.command()
def drop(letter: Letter, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a dead letter for good; `list --gone` says that there was one."""
    from llamaduo.bus.dead_letters import drop as delete
    from llamaduo.bus.dead_letters import find_dead
    from llamaduo.cli.connect import run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            dead = await find_dead(bus, letter)
            about = f"{dead.id[:16]}: {dead.subject} for {dead.consumer}, {dead.error}"
            if not yes and not typer.confirm(f"delete {_printable(about)[:LONGEST_LINE]}?"):
                typer.echo("nothing was deleted")
                return
            await delete(bus, dead, getpass.getuser())
        typer.echo(f"{dead.id} is gone")

    run(work())


LONGEST_LINE = 240


def _told(one: object) -> dict[str, object]:
    """A letter or a trace for JSON, without a body."""
    keys = ("id", "what", "by", "subject", "consumer", "migration", "error", "attempts", "log_seq", "at")
    return {key: getattr(one, key) for key in keys if hasattr(one, key)} | {"at": one.at.isoformat()}  # type: ignore[attr-defined]


def _printable(text: str) -> str:
    """On one's terminal nothing that a stranger wrote may move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
