"""`llamaduo data`: look at a coverage dataset before it is submitted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.datasets import Row

app = typer.Typer(no_args_is_help=True, help="Coverage datasets: check one and count what is in it.")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="JSONL with `messages`, or `prompt` and `response`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Read and check a dataset: rows, repeats, lengths, system messages, answers. Bad lines are errors."""
    from llamaduo.coverage_files import read_coverage

    rows = read_coverage(file)
    with file.open("rb") as lines:
        written = sum(1 for line in lines if line.strip())
    facts = facts_of(rows, written)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<24} {value}")


def facts_of(rows: list[Row], written: int) -> dict[str, object]:
    """Counts of a dataset; `written` is the number of lines in its file. Lengths are in characters."""
    from llamaduo.datasets import dataset_digest

    prompts = [sum(len(message.content) for message in row.prompt) for row in rows]
    answers = [len(row.answer) for row in rows]
    conflicting = Counter(tuple(message.content for message in row.prompt) for row in rows)
    return {
        "rows": len(rows),
        "exact repeats dropped": written - len(rows),
        "prompts answered twice": sum(count > 1 for count in conflicting.values()),
        "with a system message": sum(row.messages[0].role == "system" for row in rows),
        "with several turns": sum(len([m for m in row.prompt if m.role == "user"]) > 1 for row in rows),
        "prompt, median length": median(prompts),
        "prompt, longest": max(prompts),
        "answer, median length": median(answers),
        "answer, longest": max(answers),
        "different answers": len({row.answer for row in rows}),
        "digest": dataset_digest(rows),
    }
