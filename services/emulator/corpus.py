"""Writes the demo's coverage dataset: chat rows of the grammar, no two of them near copies."""

from __future__ import annotations

import json
from pathlib import Path

from services.emulator.draws import draws
from services.emulator.grammar import INTENTS, SYSTEM_PROMPT, URGENCIES
from services.emulator.likeness import is_near_copy, sorted_words
from services.emulator.teacher import understand
from services.emulator.writer import write_message

NEAR_COPY = 85.0  # stricter than the 90 by which the loop calls two messages near copies
_TRIES_A_ROW = 200

Row = dict[str, list[dict[str, str]]]


def make_corpus(rows: int, seed: int) -> list[Row]:
    """`rows` chat rows (system, user, assistant), intents and urgencies in turn, answered by the teacher.

    Raises ValueError when the grammar is too narrow for so many distinct rows.
    """
    rng = draws("corpus", seed)
    texts: list[str] = []
    worded: list[str] = []
    cases: set[tuple[str, str, int]] = set()
    made: list[Row] = []
    for number in range(rows):
        intent = INTENTS[number % len(INTENTS)]
        urgency = URGENCIES[number // len(INTENTS) % len(URGENCIES)]
        for _ in range(_TRIES_A_ROW):
            message = write_message(rng, intent, urgency)
            case = (intent, message.meaning.product, message.body)
            words = sorted_words(message.text)
            if case not in cases and not (
                is_near_copy(message.text, texts, NEAR_COPY) or is_near_copy(words, worded, NEAR_COPY)
            ):
                break
        else:
            raise ValueError(f"the grammar has no {rows} distinct rows: stopped after {number}; ask for fewer")
        texts.append(message.text)
        worded.append(words)
        cases.add(case)
        made.append(
            {
                "messages": [
                    {"role": "system", "content": SYSTEM_PROMPT},
                    {"role": "user", "content": message.text},
                    {"role": "assistant", "content": understand(message.text).as_json()},
                ]
            }
        )
    rng.shuffle(made)
    return made


def write_corpus(path: Path, rows: int, seed: int) -> None:
    """Writes `make_corpus(rows, seed)` to `path` as JSONL, one row a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in make_corpus(rows, seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
