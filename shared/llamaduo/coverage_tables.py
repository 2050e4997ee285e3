"""Reads tables of prompts and answers: CSV by the standard library, Parquet by pyarrow where that is installed."""

from __future__ import annotations

import csv
import datetime
import decimal
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llamaduo.coverage_rows import COLUMNS, BadRow, Columns
from llamaduo.errors import UserInputError
from llamaduo.migrations.spec import Column

EXTRA = "pip install 'llamaduo[data]'"
MAX_CELL = 1_000_000
_DELIMITERS = ",;\t|"
_NEVER_EMPTY: tuple[Column, ...] = ("prompt", "response", "completion")
_NAMED_AS_JSON = (".jsonl", ".ndjson", ".json")


def looks_like_csv(path: Path, head: bytes, columns: Columns) -> bool:
    """Whether a file that begins so is a table: by its name, or by a header that names our columns."""
    if head.startswith((b"{", b'"{')):
        return False
    if path.suffix.lower() in (".csv", ".tsv"):
        return True
    first = head.partition(b"\n")[0].decode("utf-8", errors="replace")
    names = _cells(first, _delimiter(first))
    known = {columns.get(name, name) for name in COLUMNS}
    if set(names) & known and len(names) > 1:
        return True
    return path.suffix.lower() not in _NAMED_AS_JSON and len(names) > 1


def csv_records(path: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    """(line that it begins in, record by the header's names) of each record of a table with a header.

    An empty cell of a column of ours is as if it were not there, but for the prompt and the answer.
    """
    csv.field_size_limit(MAX_CELL)
    needed = {columns.get(name, name) for name in _NEVER_EMPTY}
    optional = {columns.get(name, name) for name in COLUMNS} - needed
    # A byte that is no UTF-8 comes through as half a character, so that the line it stands in can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_delimiter(first), strict=True)
        header = _header(path, reader)
        before = reader.line_num
        while True:
            number, problem, cells = before + 1, None, []
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = BadRow(f"is no CSV: {error}", hint="a quote within quotes is written twice")
            before = reader.line_num
            if problem is None and not cells:
                continue
            if problem is None:
                problem = _wrong_cells(header, cells)
            if problem is not None:
                yield number, problem
                continue
            record = zip(header, cells, strict=True)
            yield number, {name: cell for name, cell in record if cell or name not in optional}


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserInputError(f"its header is no CSV: {error}", file=str(path), line=1) from error
    if (twice := _named_twice(header)) is not None:
        raise UserInputError(f"two columns are called {twice!r}", file=str(path), line=1)
    return header


def _named_twice(names: Sequence[str]) -> str | None:
    return next((name for place, name in enumerate(names) if name in names[:place]), None)


def _wrong_cells(header: list[str], cells: list[str]) -> BadRow | None:
    if len(cells) != len(header):
        return BadRow(f"has {len(cells)} cells, the header {len(header)}", hint="text with a comma stands in quotes")
    for name, cell in zip(header, cells, strict=True):
        if byte := next((ord(sign) - 0xDC00 for sign in cell if 0xDC80 <= ord(sign) <= 0xDCFF), None):
            hint = "iconv -f LATIN1 -t UTF-8, if it is Latin-1"
            return BadRow(f"is not UTF-8 text (byte 0x{byte:02x})", name, hint)
    return None


def _delimiter(first_line: str) -> str:
    return max(_DELIMITERS, key=first_line.count)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def parquet_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(1-based number of the row, record) of each row. UserInputError without pyarrow, or for a broken file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserInputError("reading Parquet needs a package", file=str(path), hint=EXTRA) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if (twice := _named_twice(file.schema_arrow.names)) is not None:
                raise UserInputError(f"two columns are called {twice!r}", file=str(path))
            for batch in file.iter_batches(batch_size=1000):
                for raw in batch.to_pylist():
                    number += 1
                    try:
                        yield number, {name: _plain(value, name) for name, value in raw.items()}
                    except BadRow as problem:
                        yield number, problem
    except (
        pyarrow.ArrowException,
        OSError,
        OverflowError,  # a date after the year 9999
        ValueError,  # names or texts that are no UTF-8
    ) as error:
        what = " ".join(str(error).split())[:200]
        raise UserInputError(f"is no Parquet file that can be read: {what}", file=str(path)) from error


def _plain(value: Any, where: str) -> Any:
    """A cell as JSON can hold it.

    Arrow gives all objects of a column the same keys: one that is null in an object was not there before.
    """
    if isinstance(value, dict):
        return {name: _plain(one, f"{where}.{name}") for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_plain(one, f"{where}[{place}]") for place, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        raise BadRow("holds bytes, not text", where)
    return value
