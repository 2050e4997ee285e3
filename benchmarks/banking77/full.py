"""All 77 intents, all rows of the train file: what the small model reaches on the official test file."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.banking77.small_model import answers_of, right_share, small_base, trained
from benchmarks.banking77_rows import banking77_rows
from llamaduo.datasets import Row
from llamaduo.migrations.recipe import Recipe

VALIDATION = 308
RECIPE = Recipe(
    steps=1000, batch_size=16, learning_rate=1e-3, max_length=128, validate_every=200, precision="bf16", threads=1
)


async def full_run(folder: Path, models: Path, *, quick: bool, threads: int, seed: int = 0) -> dict[str, Any]:
    """Train once on all rows but the validation ones, and answer the official test file once, at the end."""
    test = banking77_rows("test")
    if quick:
        test = test[::20]
    train, validation = parted(banking77_rows("train"), test, seed)
    recipe = RECIPE.model_copy(update={"threads": threads} | ({"steps": 20, "validate_every": 10} if quick else {}))
    began = time.monotonic()
    model = await trained(await small_base(models), folder, train, validation, recipe, seed)
    trained_s = time.monotonic() - began
    given = await answers_of(model, test, threads)
    accuracy = right_share(given, test)
    labels = {row.answer for row in train}
    return {
        "official_test_accuracy": round(accuracy, 4),
        "interval_95": [round(end, 4) for end in wilson(accuracy, len(test))],
        "test_rows": len(test),
        "invented": sum(answer not in labels for answer in given.values()),
        "train_rows": len(train),
        "validation_rows": len(validation),
        "steps": recipe.steps,
        "best_step": model.result.best_step,
        "validation_curve": model.result.validation_curve,
        "train_seconds": round(trained_s),
        "answer_seconds": round(time.monotonic() - began - trained_s),
        "threads": threads,
    }


def parted(rows: Sequence[Row], test: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Train and validation rows; a row whose text is a test row's, spelling apart, is in neither."""
    held = {plain(row) for row in test}
    left = [row for row in rows if plain(row) not in held]
    random.Random(seed).shuffle(left)
    return left[VALIDATION:], left[:VALIDATION]


def plain(row: Row) -> str:
    """The question without case, spaces and punctuation."""
    return "".join(char for char in row.user_text.lower() if char.isalnum())


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return middle - half, middle + half
