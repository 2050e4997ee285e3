"""A project to begin an evaluator of one's own with: `llamaduo evaluator new NAME`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

from llamaduo.built_in_evaluators import METRICS
from llamaduo.errors import UserInputError
from llamaduo.input_files import os_words

TEMPLATE = "evaluator_template"
FILES = {
    "README.md": "README.md.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "{module}.py": "evaluator.py.txt",
    "test_{module}.py": "test_evaluator.py.txt",
}
"""Name of a file in the project -> that of its text in the template."""


def module_of(name: str) -> str:
    """The module of an evaluator; the ending keeps it from hiding another module, e.g. `json`."""
    return f"{name.replace('-', '_')}_evaluator"


def write_project(name: str, folder: Path) -> list[Path]:
    """Writes the project of this name into a new or empty folder; the files written.

    UserInputError where the folder has something in it or cannot be written, or the name is one of ours.
    """
    if name in METRICS:
        raise UserInputError(f"{name} comes with LlamaDuo", field="NAME", hint="give yours another name")
    given = {"name": name, "module": module_of(name)}
    written = []
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserInputError("there is something in it already", file=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in FILES.items():
            text = files("llamaduo.cli").joinpath(TEMPLATE, source).read_text("utf-8")
            path = folder / target.format(**given)
            path.write_text(Template(text).substitute(given), "utf-8")
            written.append(path)
    except OSError as error:
        raise UserInputError(f"cannot be written: {os_words(error)}", file=str(folder)) from error
    return written
