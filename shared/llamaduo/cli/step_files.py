"""The files that the single commands hand to one another: answers, marks and failing rows, all JSON lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llamaduo.coverage_files import parse_line
from llamaduo.coverage_rows import BadRow
from llamaduo.datasets import ShardRow
from llamaduo.errors import UserInputError
from llamaduo.event_parts import FailingRow
from llamaduo.events import EvalScored
from llamaduo.identity import canonical_json
from llamaduo.input_files import os_words, why_unreadable
from llamaduo.plain_words import in_words

M = TypeVar("M", bound=BaseModel)


def read_answers(path: Path) -> list[ShardRow]:
    """Answers as `llamaduo generate` writes them. UserInputError names the first line that is none."""
    return _read(path, ShardRow, lambda answers: answers.row, "llamaduo generate")


def read_failures(path: Path) -> list[FailingRow]:
    """Failing rows as `llamaduo judge --failures` writes them. UserInputError names the first line that is none."""
    return _read(path, FailingRow, lambda failure: failure.row, "llamaduo judge --failures")


def _read(path: Path, model: type[M], key: Callable[[M], str], maker: str) -> list[M]:
    if problem := why_unreadable(path):
        raise UserInputError(problem[0], file=str(path), hint=problem[1])
    found: dict[str, M] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            one = model.model_validate(parse_line(line))
        except BadRow as bad:
            raise UserInputError(bad.why, file=str(path), line=number, hint=bad.hint) from bad
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or None
            hint = f"`{maker}` writes such a file"
            raise UserInputError(in_words(first), file=str(path), line=number, field=where, hint=hint) from error
        if key(one) in found:
            raise UserInputError(f"row {key(one)} stands here twice", file=str(path), line=number)
        found[key(one)] = one
    if not found:
        raise UserInputError("holds no rows", file=str(path), hint=f"`{maker}` writes such a file")
    return list(found.values())


def dump_marks(scored: Iterable[EvalScored]) -> bytes:
    """One mark a line, evaluator by evaluator, in the order of the answers."""
    return _lines(
        {"evaluator": one.evaluator, "version": one.version, **mark.model_dump()}
        for one in scored
        for mark in one.marks
    )


def dump_failures(failures: Iterable[FailingRow]) -> bytes:
    """Failing rows, worst first."""
    return _lines(failure.model_dump() for failure in failures)


def _lines(values: Iterable[object]) -> bytes:
    return "".join(canonical_json(value) + "\n" for value in values).encode()


def check_out(option: str, out: Path, inputs: Sequence[Path]) -> None:
    """UserInputError, before anything is paid, for a result that would replace an input or cannot be written."""
    if out.is_dir():
        raise UserInputError("is a folder, not a file", file=str(out), field=option)
    if not out.absolute().parent.is_dir():
        raise UserInputError("there is no such folder", file=str(out.parent), field=option)
    if not os.access(out.absolute().parent, os.W_OK):
        raise UserInputError("no permission to write here", file=str(out.parent), field=option)
    try:
        for one in inputs:
            if out.exists() and one.exists() and out.samefile(one):
                raise UserInputError("is one of the files that are read", file=str(out), field=option)
    except OSError as error:
        raise UserInputError(os_words(error), file=str(out), field=option) from error
