"""Commands of an operator to a migration: pause, resume, cancel, promote, rollback."""

from __future__ import annotations

import getpass
import uuid
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.events import Event
    from llamaduo.migrations.fold import MigrationView

Which = Annotated[str, typer.Argument(help="Id of the migration, its beginning, or its name.")]
Why = Annotated[str, typer.Option(help="Said in the event.")]
Again = Annotated[
    str | None,
    typer.Option("--command-id", min=8, help="Id of this command; give the same one to repeat it safely."),
]
Round = Annotated[int | None, typer.Option("--round", min=0, help="Which round's adapter.")]


def pause(migration: Which, why: Why = "", command_id: Again = None) -> None:
    """Stop a migration's work within seconds, and take up none. What is in hand goes on after `resume`."""
    _ask("pause", migration, why, command_id)


def resume(migration: Which, why: Why = "", command_id: Again = None) -> None:
    """Go on with a paused migration."""
    _ask("resume", migration, why, command_id)


def cancel(migration: Which, why: Why = "", command_id: Again = None) -> None:
    """End a migration now; what was made so far stays."""
    _ask("cancel", migration, why, command_id)


def promote(migration: Which, number: Round = None, why: Why = "", command_id: Again = None) -> None:
    """Serve a round's adapter under the migration's name; default: the round that passed."""
    _ask("promote", migration, why, command_id, number)


def rollback(migration: Which, number: Round = None, why: Why = "", command_id: Again = None) -> None:
    """Serve what the name meant before; default: take back the round that is served now."""
    _ask("rollback", migration, why, command_id, number)


def _ask(what: str, migration: str, why: str, command_id: str | None, number: int | None = None) -> None:
    from llamaduo.cli.connect import all_views, choose, run, the_bus

    command = command_id or uuid.uuid4().hex

    async def work() -> None:
        async with the_bus() as bus:
            view = choose(await all_views(bus), migration)
            new = await bus.publish(command_event(what, view, command, why, number))
        again = "" if new else " (it was asked before)"
        typer.echo(f"{what} of {view.migration} asked for{again}; command id {command}")

    run(work())


def command_event(what: str, view: MigrationView, command: str, why: str, number: int | None) -> Event:
    """The event of a command. UserInputError if it makes no sense for this migration."""
    from llamaduo.errors import UserInputError
    from llamaduo.events import (
        CancelRequested,
        PauseRequested,
        PromoteRequested,
        ResumeRequested,
        RollbackRequested,
    )

    about = {
        "migration": view.migration,
        "command": command,
        "by": getpass.getuser(),
        "why": why,
        "source": "cli",
    }
    plain = {"pause": PauseRequested, "resume": ResumeRequested, "cancel": CancelRequested}
    if what in plain:
        if view.ended is not None:
            raise UserInputError(f"{view.migration} has ended: {view.stage}")
        return plain[what].model_validate(about)
    if what == "promote":
        chosen = number if number is not None else view.passed.round if view.passed else None
        if chosen is None:
            raise UserInputError("no round has passed", field="--round", hint="name the round to promote")
        if view.adapter(chosen, view.decided_base(chosen)) is None:
            raise UserInputError(f"round {chosen} has no adapter", field="--round")
        return PromoteRequested.model_validate({**about, "round": chosen})
    chosen = number if number is not None else served_round(view)
    if chosen is None:
        raise UserInputError("nothing of this migration is served, so nothing can be rolled back")
    return RollbackRequested.model_validate({**about, "round": chosen})


def served_round(view: MigrationView) -> int | None:
    """The round of this migration that was promoted last, or that a roll-back led to; None where none is left."""
    from llamaduo.events import AdapterPromoted

    change = view.alias
    if isinstance(change, AdapterPromoted):
        return change.round
    digest = change.to.digest if change is not None and change.to is not None else None
    rounds = [event.round for event in view.of_type(AdapterPromoted) if event.adapter.digest == digest]
    return rounds[-1] if rounds else None
