"""Banking77 as rows: customer questions to a bank and their intents. Written by people; not part of this repository.

`LLAMADUO_BANKING77` names its folder (`train.csv` and `test.csv` with the columns `text` and `category`).
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Literal

from llamaduo.datasets import Message, Row, make_row

FOLDER = "LLAMADUO_BANKING77"
DEFAULT = Path(__file__).parents[2] / "shared" / "data" / "banking77"
SYSTEM = "Name the intent."


def banking77_rows(part: Literal["train", "test"]) -> list[Row]:
    """The rows of one official part in file order, equal ones once; answers are intents as plain words.

    FileNotFoundError where the data is not there.
    """
    path = Path(os.environ.get(FOLDER, DEFAULT)) / f"{part}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} of Banking77; set {FOLDER} to the folder that holds it")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [_row(line["text"].strip(), line["category"]) for line in csv.DictReader(file)]
    return list({row.id: row for row in rows}.values())


def _row(text: str, category: str) -> Row:
    return make_row(
        [
            Message(role="system", content=SYSTEM),
            Message(role="user", content=text),
            Message(role="assistant", content=category.replace("_", " ").rstrip("?").lower()),
        ]
    )
