"""Reads and checks a coverage dataset: the team's own prompts and answers.

A file's kind is told by its beginning, rather than by its name. Each kind gives records, numbered as a person would
count them (`coverage_tables` has the tables); `coverage_rows` makes rows of them. Nothing is left out silently: what
is no row is a bad line with its number and reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaduo.coverage_rows import BadRow, Columns, row_of
from llamaduo.coverage_tables import csv_records, looks_like_csv, parquet_records
from llamaduo.datasets import Row
from llamaduo.errors import UserInputError
from llamaduo.hub_datasets import ON_THE_HUB, fetched
from llamaduo.input_files import other_encoding, why_unreadable

MAX_ROW_BYTES = 1_000_000
LINES_NAMED = 10

_BOM = b"\xef\xbb\xbf"
Record = tuple[int, Any]
"""The number of a line (of a row, in Parquet) and what stands there: a value as of JSON, or the BadRow it is."""


@dataclass(frozen=True)
class BadLine:
    """A line that is no row, by its 1-based number; in Parquet the number of a row."""

    file: str
    number: int
    problem: BadRow

    def __str__(self) -> str:
        return str(self.as_error())

    def as_error(self, also: str = "") -> UserInputError:
        """The refusal of this line."""
        why, key, hint = self.problem.why, self.problem.key, self.problem.hint
        return UserInputError(why + also, file=self.file, line=self.number, field=key, hint=hint)


@dataclass
class Coverage:
    """What a dataset holds: its different rows by id, how many lines said the same again, and its bad lines."""

    rows: dict[str, Row] = field(default_factory=dict)
    repeats: int = 0
    bad: list[BadLine] = field(default_factory=list)


def read_coverage(source: Path | str, columns: Columns | None = None) -> list[Row]:
    """The rows of a coverage dataset; exact repeats are dropped.

    UserInputError names the first bad line with its reason, and the numbers of others.
    """
    return list(sound(source, columns).rows.values())


def sound(
    source: Path | str,
    columns: Columns | None = None,
    *,
    skip_bad: bool = False,
    generated: bool = False,
) -> Coverage:
    """What a dataset holds, where that is something to work with.

    UserInputError where there is a bad line (unless `skip_bad`), or no row. See `scan` for the rest.
    """
    found = scan(source, columns, generated=generated)
    if found.bad and not skip_bad:
        first, others = found.bad[0], [line.number for line in found.bad[1:]]
        named = ", ".join(map(str, others[:LINES_NAMED])) + (", …" if len(others) > LINES_NAMED else "")
        raise first.as_error(f"; {len(found.bad)} lines are bad, also {named}" if others else "")
    if not found.rows:
        raise UserInputError("holds no rows", file=str(source), hint="all lines are bad" if found.bad else None)
    return found


def scan(source: Path | str, columns: Columns | None = None, *, generated: bool = False) -> Coverage:
    """All rows and all bad lines of a file, or of a dataset of the Hub (`hf://…`).

    `columns`: see coverage_rows. `generated`: whether rows
    that LlamaDuo had written are rows here; in a coverage dataset they might come to be tested on. UserInputError
    where it is no file of rows at all.
    """
    found = Coverage()
    paths = fetched(str(source)) if str(source).startswith(ON_THE_HUB) else [Path(source)]
    for path in paths:
        for number, raw in _records(path, columns or {}):
            try:
                if isinstance(raw, BadRow):
                    raise raw
                row = row_of(raw, columns)
                if row.source == "generated" and not generated:
                    raise BadRow("is a generated row: only your own can be tested on", "source")
            except BadRow as problem:
                found.bad.append(BadLine(str(path), number, problem))
                continue
            found.repeats += row.id in found.rows
            found.rows.setdefault(row.id, row)
    return found


def _records(path: Path, columns: Columns) -> Iterator[Record]:
    if problem := why_unreadable(path):
        raise UserInputError(problem[0], file=str(path), hint=problem[1])
    with path.open("rb") as file:
        head = file.read(65_536)
    if head.startswith(b"PAR1"):
        return parquet_records(path)
    if encoding := other_encoding(head):
        raise UserInputError(encoding, file=str(path), hint="UTF-8 text is read (JSON lines, JSON, CSV), and Parquet")
    text = head.removeprefix(_BOM).lstrip()
    if text.startswith(b"["):
        return _array_records(path)
    if text.partition(b"\n")[0].strip() == b"{":
        line = head[: len(head) - len(text)].count(b"\n") + 1
        what = "has objects that span several lines, not one a line"
        raise UserInputError(what, file=str(path), line=line, hint="jq -c . FILE > rows.jsonl")
    if looks_like_csv(path, text, columns):
        return csv_records(path, columns)
    return _line_records(path)


def _line_records(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            body = line.removeprefix(_BOM) if number == 1 else line
            if not body.strip():
                continue
            try:
                yield number, parse_line(body)
            except BadRow as problem:
                yield number, problem


def parse_line(line: bytes) -> Any:
    """The JSON value that a line is. BadRow where it is none, or says something twice."""
    if len(line) > MAX_ROW_BYTES:
        raise BadRow(f"longer than {MAX_ROW_BYTES} bytes")
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"is not UTF-8 text (byte 0x{line[error.start]:02x})", hint="iconv -f LATIN1 -t UTF-8, if it is Latin-1"
        ) from error
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}", hint=_json_hint(text)) from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read: nested too deeply") from error
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow("not JSON that can be read: a number is too long") from error


def _json_hint(text: str) -> str | None:
    if text.startswith("{'"):
        return "JSON wants double quotes"
    return "one object a line" if text.count('{"') > 1 and "}{" in text.replace(" ", "") else None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadRow("this key stands twice in one object", key)
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise BadRow(f"{name} is no JSON")


def _array_records(path: Path) -> Iterator[Record]:
    """The elements of one JSON array, each by the line that it begins in. UserInputError where it is no JSON."""
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"is not UTF-8 text (byte 0x{error.object[error.start]:02x})",
            file=str(path),
            line=error.object.count(b"\n", 0, error.start) + 1,
        ) from error
    # A number of too many digits is the fault of one row, too.
    find_end = json.JSONDecoder(parse_int=float)
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        place = _after_space(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text.startswith("]", place):
            break
        try:
            _, end = find_end.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise UserInputError(
                f"not JSON: {error.msg} at column {error.colno}", file=str(path), line=error.lineno
            ) from error
        except RecursionError as error:
            raise UserInputError("not JSON that can be read: nested too deeply", file=str(path), line=line) from error
        try:
            # Once more, strictly: a key that stands twice is the fault of one row, not of the file.
            yield line, parse_line(text[place:end].replace("\n", " ").encode())
        except BadRow as problem:
            yield line, problem
        place = _after_space(text, end)
        if text.startswith(",", place):
            place += 1
        elif not text.startswith("]", place):
            line += text.count("\n", counted, place)
            raise UserInputError("not JSON: a comma or ] is missing", file=str(path), line=line)


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
