"""How many planted copies of held rows the synthesizer's filters keep out of training, by kind of disguise.

Two datasets: Banking77 (`banking77_rows`), with rows of its test part held, and the demo's tickets. Copies carry
the held row's own answer, as a teacher that recites would give it. False positives are other rows of the same task
that were written without knowing the held ones, and yet are taken for copies of them.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.banking77_rows import banking77_rows
from benchmarks.disguises import KINDS, NEAR_VERBATIM, disguised
from llamaduo.datasets import Message, Row, make_row, read_coverage
from llamaduo.events import Split
from llamaduo.migrations.spec import Splits, Synthesis
from services.emulator.corpus import make_corpus
from services.synthesizer.asking import Pair
from services.synthesizer.filtering import Screen
from services.synthesizer.splitting import split_coverage

SEED = 77
TICKETS = Path(__file__).parents[1] / "examples" / "support-triage" / "tickets.jsonl"
NEAR_COPY = Synthesis().near_copy


async def contamination(quick: bool) -> dict[str, Any]:
    """Share of copies kept out per kind, and of genuine rows dropped, on both datasets."""
    began = time.perf_counter()
    banking = _banking77(100 if quick else 1_000)
    tickets = _tickets(20 if quick else 200)
    near_verbatim = [banking["kept_out"][kind] for kind in NEAR_VERBATIM]
    return {
        "banking77": banking,
        "tickets": tickets,
        "lowest_near_verbatim": min(near_verbatim),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _banking77(planted: int) -> dict[str, Any]:
    train, test = banking77_rows("train"), banking77_rows("test")
    chance = random.Random(SEED)
    chance.shuffle(train)
    chance.shuffle(test)
    splits: dict[Split, list[Row]] = {
        "train": train[:500],
        "validation": train[500:700],
        "holdout": train[700:900],
        "test": test[:1_000],
    }
    others = train[900 : 900 + 2 * planted]
    few: dict[Split, list[Row]] = {**splits, "validation": train[500:550], "holdout": train[700:750]}
    few["test"] = splits["test"][:200]
    return {
        **_measured(splits, splits["test"][:planted], others),
        "genuine_dropped_as_held_of_300_rows": _genuine(few, others)["genuine_dropped_as_held"],
    }


def _tickets(planted: int) -> dict[str, Any]:
    asked = Splits(train=30, validation=24, test=200, holdout=50)
    splits = split_coverage(read_coverage(TICKETS), asked, 0, NEAR_COPY).rows
    others = [
        make_row([Message.model_validate(message) for message in row["messages"]])
        for row in make_corpus(2 * planted, SEED)
    ]
    return _measured(splits, splits["test"][:planted], others)


def _measured(splits: dict[Split, list[Row]], targets: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """Each kind meets filters of its own: else a copy would be dropped as the double of another copy."""
    answers = {row.user_text: row.answer for row in targets}
    planted, kept_out, slipped = {}, {}, {}
    for kind in KINDS:
        screen = Screen(splits, NEAR_COPY)
        copies = disguised(list(answers), kind, SEED)
        through = [
            (text, copy)
            for text, copy in copies
            if isinstance(screen.admit(Pair(prompt=copy, answer=answers[text])), Pair)
        ]
        planted[kind] = len(copies)
        kept_out[kind] = round(1 - len(through) / len(copies), 4)
        slipped[kind] = through[:5]
    return {
        "held_rows": sum(len(rows) for split, rows in splits.items() if split != "train"),
        "planted": planted,
        "kept_out": kept_out,
        "slipped": slipped,
        **_genuine(splits, others),
    }


def _genuine(splits: dict[Split, list[Row]], others: Sequence[Row]) -> dict[str, Any]:
    """What the same filters make of rows that were written without knowing the held ones."""
    screen = Screen(splits, NEAR_COPY)
    began = time.process_time()
    outcomes = [screen.admit(Pair(prompt=row.user_text, answer=row.answer)) for row in others]
    spent = time.process_time() - began
    dropped = Counter(outcome for outcome in outcomes if not isinstance(outcome, Pair))
    return {
        "genuine_rows": len(others),
        "genuine_dropped_as_held": round(dropped["near_copy_held"] / len(others), 4),
        "genuine_dropped": dict(dropped),
        "milliseconds_a_pair": round(1000 * spent / len(others), 2),
    }
