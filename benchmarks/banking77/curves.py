"""Accuracy by rows, arm against arm: the same first rows, the same number of steps, several seeds."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.banking77.arms import Situation, added_rows
from benchmarks.banking77.full import plain
from benchmarks.banking77.small_model import Model, answers_of, right_share, small_base, trained
from benchmarks.banking77_rows import banking77_rows
from llamaduo.datasets import Row
from llamaduo.migrations.recipe import Recipe

T = TypeVar("T")

LABELS = (
    "balance not updated after bank transfer",
    "transfer not received by recipient",
    "pending transfer",
    "transfer timing",
    "failed transfer",
    "declined transfer",
    "pending card payment",
    "reverted card payment",
    "declined card payment",
    "card payment not recognised",
    "pending top up",
    "top up failed",
)
"""Twelve that are easily confused"""
FIRST, VALIDATION = 5, 15  # rows a label
RECIPE = Recipe(
    steps=100, batch_size=16, learning_rate=1e-3, max_length=128, validate_every=50, precision="bf16", threads=1
)
AT = 7  # rows a label that all arms are compared at
RUNS: tuple[tuple[str, int], ...] = (
    ("uniform", AT),
    ("weak", AT),
    ("uniform", 15),
    ("weak, half uniform", AT),
    ("train rows near failures", AT),
    ("surplus, wrong ones kept", AT),
    ("any validation row", AT),
    ("uniform", 3),
    ("no examples", AT),
    ("labels by errors", AT),
    ("weak", 3),
)
"""Arms and rows a label, the most telling first: what a stopped benchmark has by then is compared"""


@dataclass(frozen=True)
class Parts:
    """The rows of one seed."""

    first: list[Row]
    validation: list[Row]
    pool: list[Row]
    test: list[Row]


def parts(seed: int) -> Parts:
    """By label FIRST rows, VALIDATION rows, and the others as what the teacher can give; the official test rows."""
    test = [row for row in banking77_rows("test") if row.answer in LABELS]
    held = {plain(row) for row in test}
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in banking77_rows("train"):
        if row.answer in LABELS and plain(row) not in held:
            by_label[row.answer].append(row)
    chance = random.Random(seed)
    found = Parts([], [], [], test)
    for label in LABELS:
        chance.shuffle(by_label[label])
        found.validation.extend(by_label[label][:VALIDATION])
        found.first.extend(by_label[label][VALIDATION : VALIDATION + FIRST])
        found.pool.extend(by_label[label][VALIDATION + FIRST :])
    return found


async def curves(
    folder: Path,
    models: Path,
    seeds: int,
    at_once: int,
    recipe: Recipe = RECIPE,
    planned: Sequence[tuple[str, int]] = RUNS,
) -> list[dict[str, Any]]:
    """One result for each run: seed, arm, rows added, which test rows were right. `planned` are arms and rows
    a label.

    Runs that are done are kept in `folder`, so that a benchmark that was stopped goes on.
    """
    base = await small_base(models)
    firsts = await _in_turn([partial(_situation, base, folder, seed, recipe) for seed in range(seeds)], at_once)
    runs = [
        partial(_run, base, folder, arm, number, situation, recipe)
        for arm, number in planned
        for situation, _ in firsts
    ]
    return [result for _, result in firsts] + await _in_turn(runs, at_once)


async def _in_turn(jobs: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """The results in the order of `jobs`, which are begun in that order too, `at_once` side by side."""
    places = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with places:
            return await job()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


async def _situation(base: Path, folder: Path, seed: int, recipe: Recipe) -> tuple[Situation, dict[str, Any]]:
    rows = parts(seed)
    model = await trained(base, folder / f"{seed}-first", rows.first, rows.validation, recipe, seed)
    result = await _kept(model, "first", 0, 0, seed, rows, rows.first)
    given = await answers_of(model, rows.validation)

    async def answer(some: Sequence[Row]) -> dict[str, str]:
        return await answers_of(model, some)

    weak = [row for row, _ in model.result.weak]
    return Situation(rows.first, rows.pool, rows.validation, weak, given, seed, answer), result


async def _run(
    base: Path, folder: Path, arm: str, number: int, situation: Situation, recipe: Recipe
) -> dict[str, Any]:
    asked, seed = number * len(LABELS), situation.seed
    name = f"{seed}-{arm.replace(', ', '-').replace(' ', '-')}-{number}"
    added = await added_rows(arm, situation, asked)
    train = [*situation.train, *added]
    model = await trained(base, folder / name, train, situation.validation, recipe, seed)
    return await _kept(model, arm, asked, len(added), seed, parts(seed), train)


async def _kept(
    model: Model, arm: str, asked: int, added: int, seed: int, rows: Parts, train: list[Row]
) -> dict[str, Any]:
    """The run's result, from its folder if it is there."""
    note = model.folder.parent / "result.json"
    if note.is_file() and note.stat().st_mtime >= (note.parent / "done.json").stat().st_mtime:
        kept: dict[str, Any] = json.loads(note.read_text("utf-8"))
        return kept
    given = await answers_of(model, rows.test)
    result = {
        "arm": arm,
        "asked": asked,
        "added": added,
        "rows": len(train),
        "seed": seed,
        "accuracy": round(right_share(given, rows.test), 4),
        "invented": sum(answer not in LABELS for answer in given.values()),
        "validation_curve": model.result.validation_curve,
        "loss": round(model.result.loss, 4),
        "right": [int(given[row.id] == row.answer) for row in rows.test],
    }
    note.write_text(json.dumps(result), "utf-8")
    print(f"seed {seed}, {arm}, {added} added: {result['accuracy']}", flush=True)
    return result
