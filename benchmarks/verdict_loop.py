"""`verdict` measures the verdict in simulation; this measures the same cells in the real loop.

Every service for real on a real nats-server, the emulator over HTTP as the judge, training and generation by fakes:
the model's answers are so good that its marks have the cell's mean and spread. Calls are those which the emulator's
own ledger says it answered; whose they were is in ours, under the same key.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from benchmarks.graded_engine import base_model, graded_engine
from benchmarks.limits import emulator
from benchmarks.system import TICKETS, books, ended, submit, view_of, whole_system
from benchmarks.verdict import PAPER_CALLS, PROMPTS, SHARD, Cell, Spread, measure
from llamaduo.events import ResponsesGenerated
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.service_llm.ledger import LedgerEntry

SPREAD: Spread = "0.22"
GAPS = (-10, 10)
MIGRATIONS, QUICK_MIGRATIONS = 12, 2
SIMULATED, QUICK_SIMULATED = 1_000, 100
CANDIDATE = "round-0"
_MIGRATION_S = 300


@dataclass(frozen=True)
class Played:
    """One migration in the real loop."""

    verdict: str
    calls: int
    """Judge calls for round 0's test rows that the emulator answered, those after the verdict included."""
    marks: list[float]
    """Of round 0, 0 to 1."""


def cell_of(gap: int) -> Cell:
    """The cell of the simulation that is played."""
    return Cell("absolute", SPREAD, gap)


def spec_of(cell: Cell, url: str, seed: int) -> MigrationSpec:
    """The demo's spec with the cell's gate and one round. What the base model earns is no part of this."""
    return MigrationSpec.model_validate(
        {
            "name": "graded",
            "coverage": str(TICKETS),
            "base_model": base_model(cell.mean),
            "service_llm": {"model": "openai:scripted-teacher", "base_url": url, "requests_per_minute": 60_000},
            "gate": {"absolute": {"llm-judge.similarity": 100 * cell.gate}},
            "evaluators": ["llm-judge"],
            "splits": {"train": 40, "validation": 20, "test": PROMPTS, "holdout": 25},
            "marking": {"shard_rows": SHARD, "baseline_rows": SHARD},
            "budgets": {"rounds": 1},
            "promotion": "manual",
            "recipe": {"steps": 5},
            "seed": seed,
        }
    )


def judge_calls(view: MigrationView, provider: dict[str, Any], entries: dict[str, LedgerEntry]) -> int:
    """Judge calls for round 0's test rows, as often as the provider answered each."""
    jobs = {
        event.id
        for event in view.of_type(ResponsesGenerated)
        if event.candidate.key == CANDIDATE and event.split == "test"
    }
    mine = [key for key, entry in entries.items() if any(attempt.job in jobs for attempt in entry.attempts)]
    return sum(int(provider["keys"][key]["completed"]) for key in mine)


async def play(folder: Path, cell: Cell, seed: int) -> Played:
    """One migration to its end, on a system and an emulator of its own."""
    make = partial(graded_engine, spread=float(SPREAD))
    with emulator(folder / "emulator") as url:
        async with whole_system(folder, ["llm-judge"], make) as bus:
            migration = await submit(bus, spec_of(cell, url, seed))
            await ended(bus, migration, _MIGRATION_S)
            provider, ours = await books(bus, url)
            view = await view_of(bus, migration)
    decided = view.decision(0)
    assert decided is not None
    scored = [one for shard in view.scored(CANDIDATE, "test", "llm-judge").values() for one in shard]
    marks = [m.value / 100 for one in scored for m in one.marks if m.metric == "similarity" and m.value is not None]
    return Played(decided.verdict, judge_calls(view, provider, ours), marks)


async def play_cell(folder: Path, gap: int, migrations: int) -> list[Played]:
    """So many migrations of a gap, one after another."""
    played = []
    for seed in range(migrations):
        one = await play(folder / f"{gap}-{seed}", cell_of(gap), seed)
        print(f"gap {gap:>3}, migration {seed}: {one.verdict} with {one.calls} judge calls", flush=True)
        played.append(one)
    return played


def compare(gap: int, played: Sequence[Played], simulations: int) -> dict[str, Any]:
    """One line of the result: the loop beside the simulation of the same cell."""
    simulated = measure(cell_of(gap), simulations)
    right = "passed" if gap > 0 else "failed"
    calls = fmean(one.calls for one in played)
    marks = [mark for one in played for mark in one.marks]
    return {
        "gap": gap,
        "migrations": len(played),
        "decided_right": sum(one.verdict == right for one in played) / len(played),
        "decided_right_simulated": simulated[f"round0_{right}"],
        "marks_mean": round(fmean(marks), 4),
        "marks_spread": round(pstdev(marks), 4),
        "calls": round(calls, 1),
        "calls_each": [one.calls for one in played],
        "calls_simulated": simulated["calls"],
        "calls_ratio": round(calls / PAPER_CALLS, 5),
        "calls_ratio_simulated": simulated["calls_ratio"],
        "loop_to_simulation": round(calls / simulated["calls"], 3),
    }


async def verdict_loop(quick: bool) -> dict[str, Any]:
    """Every gap in the loop and in simulation."""
    began = time.perf_counter()
    migrations, simulations = (QUICK_MIGRATIONS, QUICK_SIMULATED) if quick else (MIGRATIONS, SIMULATED)
    with tempfile.TemporaryDirectory() as temp:
        played = {gap: await play_cell(Path(temp), gap, migrations) for gap in GAPS}
    lines = [await asyncio.to_thread(compare, gap, some, simulations) for gap, some in played.items()]
    return {
        **{f"calls_ratio_gap{line['gap']}": line["calls_ratio"] for line in lines},
        "loop_to_simulation": [line["loop_to_simulation"] for line in lines],
        "within_factor_1_5": all(1 / 1.5 <= line["loop_to_simulation"] <= 1.5 for line in lines),
        "paper_calls": PAPER_CALLS,
        "seconds": round(time.perf_counter() - began, 1),
        "cells": lines,
    }
