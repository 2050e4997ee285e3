"""How often the verdict is wrong, and how many judge calls it takes: simulated migrations whose truth is known.

Marks go shard by shard through `services.verdict.judging.judge_round`, five rounds on one test set, as in a real
migration. The truth is the population mean: a wrong pass is a pass of any round although that mean is at or below
the gate, a wrong fail is a `failed` of any round although it is at or above. Calls are compared with the paper's
fixed N prompts x K answers x M marks.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from llamaduo.event_parts import Candidate, MetricRange, RowMark
from llamaduo.events import EvalScored
from llamaduo.migrations.spec import MigrationSpec
from services.verdict.judging import judge_round

PROMPTS, SHARD, ROUNDS = 200, 25, 5
PAPER_CALLS = PROMPTS * 4 * 10
"""N x K x M of the paper, with its K = 4 answers and M = 10 marks."""
GATE, MARGIN = 0.70, 0.10
GAPS = (-20, -10, -5, -2, 0, 2, 5, 10, 20)
"""Points of 100 by which the true mean (parity: the true difference) is above what the gate asks."""
FIRST_LOOK = 3
"""Shards that are drawn before the first look; what a clear case does not need is not drawn."""
SHARED = 0.5
"""Parity: how much of a mark comes from the prompt and is the same for model and service LLM."""

Kind = Literal["absolute", "parity"]
Spread = Literal["0.10", "0.22", "binary"]


@dataclass(frozen=True)
class Cell:
    """One setting: what is asked, how marks spread, and how far from the gate the truth is."""

    kind: Kind
    spread: Spread
    gap: int
    gate: float = GATE

    @property
    def mean(self) -> float:
        """The model's true mean mark."""
        return self.gate + self.gap / 100


@dataclass(frozen=True)
class Told:
    """What came of one simulated migration."""

    first: str
    """The verdict on round 0."""
    calls: int
    """Judge calls of round 0, those for failing rows to aim at included."""
    certain_after: int
    """Judge calls after which round 0 was certain; all of them if it never was."""
    passed: bool
    failed: bool
    """Whether any of the five rounds was said to have passed, or failed."""


def spec_of(cell: Cell) -> MigrationSpec:
    """A spec with that gate at 95 %."""
    gate: dict[str, Any] = {"absolute": {"judge.mark": cell.gate}}
    if cell.kind == "parity":
        gate = {"parity": {"margin": 100 * MARGIN}}
    return MigrationSpec.model_validate(
        {
            "name": "simulated", "coverage": "none", "base_model": "none", "service_llm": "openai:none",
            "evaluators": ["judge"], "gate": gate, "marking": {"shard_rows": SHARD},
        }
    )  # fmt: skip


def shape_of(mean: float, spread: float) -> tuple[float, float]:
    """The Beta distribution of that mean and standard deviation."""
    weight = mean * (1 - mean) / spread**2 - 1
    return mean * weight, (1 - mean) * weight


class Marks:
    """Draws marks of one migration: what belongs to a prompt stays, what belongs to a round is drawn anew.

    A Beta mark is x / (x + y) of two Gamma draws; Gamma draws add up, so a prompt's share of both can be kept for
    another candidate and every mark still has exactly its Beta distribution and mean.
    """

    def __init__(self, cell: Cell, chance: random.Random) -> None:
        self._cell, self._chance = cell, chance
        self._bar = cell.gate + MARGIN
        if cell.spread != "binary":
            own, bar = shape_of(cell.mean, float(cell.spread)), shape_of(self._bar, float(cell.spread))
            self._own = own
            self._shared = [SHARED * min(pair) for pair in zip(own, bar, strict=True)]
            self._bar_shape = bar
        self._prompts: list[tuple[float, float]] = []
        self.service: list[float] = []
        """The service LLM's marks, one a prompt, where parity is asked."""
        if cell.kind == "parity":
            for _ in range(PROMPTS):
                self._prompt()

    def _prompt(self) -> None:
        draw = self._chance
        if self._cell.spread == "binary":
            part = (draw.random(), 0.0)
            self.service.append(float(part[0] < self._bar))
        else:
            part = (draw.gammavariate(self._shared[0], 1), draw.gammavariate(self._shared[1], 1))
            x, y = (p + draw.gammavariate(b - s, 1) for p, b, s in self._parts(part, self._bar_shape))
            self.service.append(x / (x + y))
        self._prompts.append(part)

    def _parts(self, part: tuple[float, float], shape: tuple[float, float]) -> Iterator[tuple[float, float, float]]:
        return zip(part, shape, self._shared, strict=True)

    def of_prompt(self, prompt: int) -> float:
        """The model's mark for a prompt in one round."""
        cell, draw = self._cell, self._chance
        if cell.spread == "binary":
            kept = cell.kind == "parity" and draw.random() < SHARED
            return float((self._prompts[prompt][0] if kept else draw.random()) < cell.mean)
        if cell.kind == "absolute":
            return draw.betavariate(*self._own)
        x, y = (p + draw.gammavariate(o - s, 1) for p, o, s in self._parts(self._prompts[prompt], self._own))
        return x / (x + y)


def shard_of(candidate: Candidate, number: int, values: list[float]) -> EvalScored:
    """Marks of one shard as the evaluator would publish them."""
    marks = [RowMark(row=f"{number}-{i}", metric="mark", value=value) for i, value in enumerate(values)]
    return EvalScored(
        migration="m", candidate=candidate, split="test", shard=number, of=PROMPTS // SHARD, evaluator="judge",
        version="1", metrics={"mark": MetricRange()}, marks=marks,
    )  # fmt: skip


def migration(cell: Cell, spec: MigrationSpec, seed: str) -> Told:
    """Play five rounds, or until one passes."""
    marks = Marks(cell, random.Random(seed))
    shards = PROMPTS // SHARD
    service = {
        n: [shard_of(Candidate(kind="service"), n, marks.service[n * SHARD : (n + 1) * SHARD])]
        for n in range(shards if marks.service else 0)
    }
    verdicts: list[str] = []
    calls = certain_after = 0
    for number in range(ROUNDS):
        candidate = Candidate(kind="adapter", round=number)
        local: dict[int, list[EvalScored]] = {}
        # The decision depends on the unbroken prefix alone, so two looks find what a look after every shard finds.
        for known in (FIRST_LOOK, shards):
            for n in range(len(local), known):
                values = [marks.of_prompt(n * SHARD + i) for i in range(SHARD)]
                local[n] = [shard_of(candidate, n, values)]
            outcome = judge_round(spec, number, shards, local, service)
            if outcome.verdict != "waiting":
                break
        verdicts.append(outcome.verdict)
        if number == 0:
            calls, certain_after = outcome.rows, outcome.sure_after or outcome.rows
        if outcome.verdict == "passed":
            break
    return Told(verdicts[0], calls, certain_after, "passed" in verdicts, "failed" in verdicts)


def measure(cell: Cell, migrations: int) -> dict[str, Any]:
    """One line of the result: shares of migrations, and mean calls of round 0 as a share of the paper's."""
    spec = spec_of(cell)
    told = [migration(cell, spec, f"{cell} {seed}") for seed in range(migrations)]
    first = Counter(one.first for one in told)
    mean_calls = sum(one.calls for one in told) / migrations
    line: dict[str, Any] = {
        "kind": cell.kind,
        "spread": cell.spread,
        "gap": cell.gap,
        **{f"round0_{name}": round(first[name] / migrations, 4) for name in ("passed", "failed", "undecided")},
        "calls": round(mean_calls, 1),
        "calls_ratio": round(mean_calls / PAPER_CALLS, 5),
        "certain_after": round(sum(one.certain_after for one in told) / migrations, 1),
    }
    if cell.gap <= 0:
        line["false_pass"] = round(sum(one.passed for one in told) / migrations, 4)
    if cell.gap >= 0:
        line["false_fail"] = round(sum(one.failed for one in told) / migrations, 4)
    return line


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of all cells; marks of 0 and 1 apart, since they spread more than any other."""

    def worst(of: str, **where: Any) -> float:
        chosen = [
            line[of]
            for line in lines
            if of in line
            and all(abs(line[key]) == value if key == "gap" else line[key] in value for key, value in where.items())
        ]
        return float(max(chosen))

    spread, yes_no = {"spread": ("0.10", "0.22")}, {"spread": ("binary",)}
    found: dict[str, Any] = {"false_pass": worst("false_pass"), "false_fail": worst("false_fail")}
    for name, where in (("", spread), ("_binary", yes_no)):
        for kind in ("absolute", "parity"):
            tail = name + ("_parity" if kind == "parity" else "")
            for gap in (5, 10):
                found[f"calls_ratio_gap{gap}{tail}"] = worst("calls_ratio", gap=gap, kind=(kind,), **where)
            found[f"undecided_gap10{tail}"] = worst("round0_undecided", gap=10, kind=(kind,), **where)
    return {**found, "calls_ratio_any_gap": worst("calls_ratio")}


async def verdict(quick: bool) -> dict[str, Any]:
    """Error rates and calls: 2,000 migrations a cell; 100, and without the narrow spread, if `quick`."""
    migrations = 100 if quick else 2_000
    kinds: tuple[Kind, ...] = ("absolute", "parity")
    spreads: tuple[Spread, ...] = ("0.22", "binary") if quick else ("0.10", "0.22", "binary")
    cells = [Cell(kind, spread, gap) for kind in kinds for spread in spreads for gap in GAPS]
    began = time.perf_counter()
    # Nothing here makes reference cycles; looking for them took a third of the time.
    with multiprocessing.get_context("spawn").Pool(2, initializer=gc.disable) as pool:
        lines = pool.map(partial(measure, migrations=migrations), cells, chunksize=1)
    return {
        **summary(lines),
        "migrations": migrations,
        "rounds": ROUNDS,
        "prompts": PROMPTS,
        "paper_calls": PAPER_CALLS,
        "seconds": round(time.perf_counter() - began, 1),
        "cells": lines,
    }
