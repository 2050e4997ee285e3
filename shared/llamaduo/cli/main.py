"""The `llamaduo` command: its groups, its global options, and how errors leave it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from llamaduo.cli import (
    backup_commands,
    chat_command,
    data_commands,
    demo_command,
    dlq_commands,
    doctor_command,
    evaluator_commands,
    events_command,
    init_command,
    keys_commands,
    migrate_command,
    operator_commands,
    plan_command,
    report_command,
    setup_commands,
    sharing_commands,
    single_commands,
    up_command,
    watch_command,
)
from llamaduo.cli.state import NATS_VARIABLE, STATE_VARIABLE

ABOUT = """Move a task from a cloud LLM to a small model of your own, unattended, and prove that it worked.

\b
See it run, with no key and no GPU:
  llamaduo doctor                      what is missing here
  llamaduo demo                        a whole migration, start to end

\b
Your own task:
  llamaduo data inspect tickets.jsonl  is the dataset sound?
  llamaduo init tickets.jsonl          write a spec for it, migration.yaml
  llamaduo plan migration.yaml         what it will take, on one page
  llamaduo up                          the system (leave it running)
  llamaduo migrate migration.yaml      submit it; --watch follows it
  llamaduo report --html report.html   what came out
  llamaduo chat support-triage         talk to the result

\b
One step at a time, with no system running:
  llamaduo synthesize, merge, generate, judge
"""
RUN, STEPS, LOOK = "Run", "One step at a time, with no bus", "Look"
SHARE, STEER, OPERATE = "Give away", "Steer a migration", "Operate"

app = typer.Typer(
    name="llamaduo",
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def global_options(
    state: Annotated[
        Path | None, typer.Option(help="Folder for data, logs and models.", envvar=STATE_VARIABLE)
    ] = None,
    nats: Annotated[str | None, typer.Option(help="The bus, nats://host:port.", envvar=NATS_VARIABLE)] = None,
) -> None:
    """Options of every command; child processes get them by environment."""
    if state is not None:
        os.environ[STATE_VARIABLE] = str(state.absolute())
    if nats is not None:
        os.environ[NATS_VARIABLE] = nats


app.command(rich_help_panel=RUN)(demo_command.demo)
app.command(rich_help_panel=RUN)(up_command.up)
app.command(rich_help_panel=RUN)(up_command.down)
app.command(rich_help_panel=RUN)(init_command.init)
app.command(rich_help_panel=RUN)(plan_command.plan)
app.command(rich_help_panel=RUN)(migrate_command.migrate)
app.command(rich_help_panel=RUN)(chat_command.chat)
app.command(rich_help_panel=STEPS)(single_commands.synthesize)
app.command(rich_help_panel=STEPS)(data_commands.merge)
app.command(rich_help_panel=STEPS)(single_commands.generate)
app.command(rich_help_panel=STEPS)(single_commands.judge)
app.command(rich_help_panel=LOOK)(watch_command.watch)
app.command(rich_help_panel=LOOK)(report_command.status)
app.command(rich_help_panel=LOOK)(report_command.report)
app.command(rich_help_panel=LOOK)(events_command.events)
app.add_typer(data_commands.app, name="data", rich_help_panel=LOOK)
app.command(rich_help_panel=SHARE)(sharing_commands.export)
app.command(rich_help_panel=SHARE)(sharing_commands.push)
app.command(rich_help_panel=STEER)(operator_commands.pause)
app.command(rich_help_panel=STEER)(operator_commands.resume)
app.command(rich_help_panel=STEER)(operator_commands.cancel)
app.command(rich_help_panel=STEER)(operator_commands.promote)
app.command(rich_help_panel=STEER)(operator_commands.rollback)
app.command(rich_help_panel=OPERATE)(doctor_command.doctor)
app.command(rich_help_panel=OPERATE)(setup_commands.bootstrap)
app.add_typer(evaluator_commands.app, name="evaluator", rich_help_panel=OPERATE)
app.add_typer(dlq_commands.app, name="dlq", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(backup_commands.backup)
app.command(rich_help_panel=OPERATE)(backup_commands.restore)
app.add_typer(keys_commands.app, name="keys", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(setup_commands.schema)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    raise SystemExit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run a command and give its exit code; our own errors become one line on stderr."""
    from llamaduo.errors import LlamaDuoError, UserInputError
    from llamaduo.input_files import of_os_error
    from llamaduo.masking import learn_environment, masked

    learn_environment(os.environ)

    try:
        app(arguments)
    except UserInputError as error:
        typer.echo(f"llamaduo: {masked(str(error))}", err=True)
        return 2
    except LlamaDuoError as error:
        typer.echo(f"llamaduo: {masked(str(error))}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:
        # A path that was named and cannot be used; all else of the system's is a fault of ours and keeps its trace.
        if (named := of_os_error(error)) is None:
            raise
        typer.echo(f"llamaduo: {named}", err=True)
        return 2
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    main()
