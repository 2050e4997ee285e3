"""`llamaduo plan`: what a migration will take and can tell, on one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamaduo.cli.data_commands import SKIP_BAD

if TYPE_CHECKING:
    from llamaduo.cli.submission import Submission
    from llamaduo.migrations.spec import ServiceLLM
    from llamaduo.planning.plan import Plan


def plan(
    spec: Annotated[Path, typer.Argument(help="The migration's YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=SKIP_BAD)] = False,
) -> None:
    """Say what a migration will take: calls, money, hours, memory, and what its test rows can tell.

    Checks spec and data like `migrate`, starts nothing, needs no bus and no key. Figures are estimates.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.data_commands import tell_skipped
    from llamaduo.cli.submission import prepare
    from llamaduo.planning.page import page

    prepared = prepare(spec, environment=os.environ, keys_needed=False, skip_bad=skip_bad)
    tell_skipped(prepared.skipped, len(prepared.rows))
    made = planned(prepared)
    notes = [*prepared.notes, *made.notes, *run(_evaluators(prepared))]
    made = made.model_copy(update={"notes": notes})
    typer.echo(made.model_dump_json(indent=2) if as_json else page(made))


def planned(prepared: Submission) -> Plan:
    """The plan of a checked migration on this machine."""
    from llamaduo.planning.machine import this_machine
    from llamaduo.planning.plan import plan_of

    return plan_of(prepared.spec, prepared.rows, this_machine(), price)


def price(llm: ServiceLLM, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars of a call; None where no price is known, or the price list is not installed here."""
    from llamaduo.service_llm.prices import money

    try:
        return money(llm, input_tokens, output_tokens)
    except ImportError:
        return None


async def _evaluators(prepared: Submission) -> list[str]:
    """Notes on evaluators that the bus at hand does not know or nobody runs; without one, that nobody looked."""
    from llamaduo.cli.connect import the_bus
    from llamaduo.cli.migrate_command import evaluators_on
    from llamaduo.cli.spec_checks import check_evaluators
    from llamaduo.errors import LlamaDuoError, UserInputError

    try:
        async with the_bus() as bus:
            return check_evaluators(prepared.file, await evaluators_on(bus))
    except UserInputError as missing:
        return [str(missing)]
    except LlamaDuoError:
        names = ", ".join(choice.name for choice in prepared.spec.evaluators)
        return [f"no bus is at hand: whether anybody runs {names} was not checked"]
