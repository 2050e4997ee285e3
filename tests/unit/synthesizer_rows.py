"""Rows for the synthesizer's tests: short made-up messages, no two of them alike by chance."""

from __future__ import annotations

import json
import random
from typing import Any

from llamaduo.datasets import Message, Row, make_row
from llamaduo.event_parts import Split
from llamaduo.migrations.spec import MigrationSpec

_SYLLABLES = ("ka", "lo", "mi", "ter", "sun", "ba", "rel", "on", "vi", "gard", "pe", "shu", "dra", "nel", "qu")


def word(chance: random.Random) -> str:
    return "".join(chance.choices(_SYLLABLES, k=chance.randint(2, 4)))


def text(chance: random.Random, words: int = 12) -> str:
    return " ".join(word(chance) for _ in range(words)).capitalize() + "."


def row(user: str, answer: str = "yes", system: str = "Answer.", **extra: Any) -> Row:
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role="user", content=user), Message(role="assistant", content=answer)]
    return make_row(messages, **extra)


def record(chance: random.Random) -> str:
    return json.dumps({"kind": chance.choice(["refund", "delivery", "damage"]), "place": word(chance)})


def rows(number: int, seed: int, words: int = 12) -> list[Row]:
    chance = random.Random(seed)
    return [row(text(chance, words), record(chance)) for _ in range(number)]


def some_splits(
    seed: int = 1, train: int = 20, validation: int = 5, test: int = 20, holdout: int = 5
) -> dict[Split, list[Row]]:
    every = rows(train + validation + test + holdout, seed)
    return {
        "train": every[:train],
        "validation": every[train : train + validation],
        "test": every[train + validation : train + validation + test],
        "holdout": every[train + validation + test :],
    }


def spec(**synthesis: Any) -> MigrationSpec:
    return MigrationSpec.model_validate(
        {
            "name": "demo",
            "task": "Say what a message is about.",
            "coverage": "rows.jsonl",
            "base_model": "base",
            "service_llm": "openai:teacher-model",
            "gate": {"parity": {"margin": 3}},
            "synthesis": synthesis,
        }
    )
