"""`llamaduo doctor`: what is missing here, and the command that mends it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

SIGNS = {"ok": "ok    ", "want": "could ", "need": "NEEDED"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Check this machine. Exit code 1 if something is missing without which nothing runs."""
    from llamaduo.cli.doctor import Machine, examine
    from llamaduo.cli.state import state_dir

    findings = examine(Machine(state_dir(), os.environ, Path.cwd()))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{SIGNS[finding.state]}  {finding.name:<13} {finding.detail}")
            if finding.mend:
                typer.echo(f"{'':<23}-> {finding.mend}")
    raise typer.Exit(int(any(finding.state == "need" for finding in findings)))
