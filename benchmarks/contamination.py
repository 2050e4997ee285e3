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
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.banking77_rows import banking77_rows
from benchmarks.disguises import KINDS, NEAR_VERBATIM, disguised
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Message, Row, make_row
from llamaduo.event_parts import FailingRow, Split
from llamaduo.migrations.spec import MigrationSpec, Splits, Synthesis
from services.emulator.corpus import make_corpus
from services.synthesizer.asking import Pair, Pairs, TeacherAnswer, TeacherPrompt
from services.synthesizer.fake_teacher import FakeTeacher
from services.synthesizer.filtering import Screen
from services.synthesizer.merging import merge
from services.synthesizer.near_copies import words_of
from services.synthesizer.splitting import split_coverage
from services.synthesizer.synthesis import synthesize

SEED = 77
TICKETS = Path(__file__).parents[1] / "examples" / "support-triage" / "tickets.jsonl"
NEAR_COPY = Synthesis().near_copy
SPEC: dict[str, Any] = {
    "name": "bank",
    "coverage": "rows.jsonl",
    "base_model": "base",
    "service_llm": "openai:recorded",
    "gate": {"absolute": {"exact-match.exact": 0.8}},
    "evaluators": ["exact-match"],
}


async def contamination(quick: bool) -> dict[str, Any]:
    """Copies kept out per kind and genuine rows dropped, on both datasets; held rows that prompts show."""
    began = time.perf_counter()
    banking = _banking77(100 if quick else 1_000)
    tickets = _tickets(20 if quick else 200)
    near_verbatim = [banking["kept_out"][kind] for kind in NEAR_VERBATIM]
    prompts = await _prompts(1 if quick else 4)
    return {
        "banking77": banking,
        "tickets": tickets,
        "prompts": prompts,
        "lowest_near_verbatim": min(near_verbatim),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _bank() -> tuple[dict[Split, list[Row]], list[Row]]:
    """Splits with 1,400 held rows, and the train rows that are in none."""
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
    return splits, train[900:]


def _banking77(planted: int) -> dict[str, Any]:
    splits, others = _bank()
    others = others[: 2 * planted]
    few: dict[Split, list[Row]] = {
        **splits,
        "validation": splits["validation"][:50],
        "holdout": splits["holdout"][:50],
    }
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


async def _prompts(rounds: int) -> dict[str, int]:
    """Held rows whose text is in a prompt of a run in which 300 test rows fail, each quoted in full by its judge."""
    splits, others = _bank()
    fresh = iter(others)

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        if prompt.output is not Pairs:
            return TeacherAnswer(checks=[])
        return TeacherAnswer(pairs=[Pair(prompt=row.user_text, answer=row.answer) for row in islice(fresh, 10)])

    teacher = FakeTeacher(answer)
    failing = [
        FailingRow(row=row.id, mark=0, reasons=[f"It reads '{row.user_text}' as a case unlike {row.answer}."])
        for row in splits["test"][:300]
    ]
    held = [row for split, rows in splits.items() if split != "train" for row in rows]
    for number in range(1, rounds + 1):
        new = await synthesize(
            splits=splits,
            failures=failing,
            spec=MigrationSpec.model_validate({**SPEC, "synthesis": {"uniform_share": 0.1, "self_check": True}}),
            migration="benchmark",
            round_number=number,
            teacher=teacher,
        )
        splits = {**splits, "train": merge(splits["train"], new.rows)}
    shown = [message.content for prompt in teacher.asked for message in prompt.messages]
    plain = f" {' '.join(words_of(' '.join(shown)))} "
    ours = " | ".join(f" {' '.join(words_of(row.user_text))} " for row in splits["train"])
    texts = {f" {' '.join(words_of(row.user_text))} " for row in held}
    return {
        "asked": len(teacher.asked),
        "with_a_reason": sum("## Where the small model is weak" in content for content in shown),
        "held_rows": len(held),
        "held_texts_shown": sum(text in plain and text not in ours for text in texts),
    }
