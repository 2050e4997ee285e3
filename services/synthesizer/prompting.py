"""Writes the messages of one synthesis call."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Set
from functools import lru_cache
from importlib import resources
from string import Template

from llamaduo.datasets import Message, Row
from llamaduo.identity import seed_of
from services.synthesizer.asking import Pairs, TeacherPrompt
from services.synthesizer.scrubbing import retells, scrub
from services.synthesizer.seeding import Seeds

ROLE = (
    "You write training data from which a small language model learns one task. "
    "You answer with the JSON asked for and nothing else."
)
NO_TASK = "The examples below show the task."
REASONS_SHOWN = 3
REASON_CHARS = 300

WRITERS = (
    "someone in a hurry",
    "a polite newcomer",
    "an expert in the field",
    "somebody who writes from a phone",
    "a frustrated person",
    "an older person who explains a lot",
    "a teenager",
    "somebody writing for a company",
    "a person whose first language is another one",
    "a chatty person who wanders off the point",
    "somebody who has asked before",
    "a precise, dry writer",
)
SHAPES = (
    "very short prompts",
    "two or three full sentences",
    "prompts with needless detail",
    "prompts that leave something optional out",
    "small spelling mistakes",
    "the main point at the end",
    "the main point in the first words",
    "unusual but valid values",
    "names, numbers or dates in uncommon forms",
    "informal wording",
)
DIFFICULTIES = (
    "plain, typical cases",
    "cases that are easily mistaken for another kind",
    "rare cases",
    "borderline cases with one right answer",
    "a mixture of easy and hard cases",
)


def synthesis_prompt(
    *,
    migration: str,
    round_number: int,
    call: int,
    task: str,
    seeds: Seeds,
    pairs: int,
    test: Mapping[str, Row],
    labels: Set[str] = frozenset(),
) -> TeacherPrompt:
    """The prompt of one call: a pure function of its arguments.

    `test` holds the test rows by id; they are only used to take their text out of the reasons. `labels` are
    answers that train rows have, which may be named.
    """
    chance = random.Random(seed_of("variety", migration, round_number, call))  # noqa: S311 - replayable on purpose
    variety = [*chance.sample(WRITERS, 2), chance.choice(SHAPES), chance.choice(DIFFICULTIES)]
    text = _template().substitute(
        task=task.strip() or NO_TASK,
        system=_system_part(seeds.system),
        examples="\n".join(
            json.dumps({"prompt": row.user_text, "answer": row.answer}, ensure_ascii=False) for row in seeds.rows
        ),
        notes=_notes(seeds, test, labels),
        number=pairs,
        variety="; ".join(variety),
        batch=f"{round_number}-{call}",
    )
    return TeacherPrompt(
        job=f"synthesis/{round_number}/{call}",
        messages=[Message(role="system", content=ROLE), Message(role="user", content=text)],
        seed=seed_of("synthesis", migration, round_number, call),
        output=Pairs,
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    folder = resources.files("services.synthesizer") / "prompts"
    return Template((folder / "synthesis.md").read_text(encoding="utf-8"))


def _system_part(system: str) -> str:
    if not system:
        return ""
    return f"Whoever does the task is told this beforehand:\n\n<<<\n{system}\n>>>\n"


def _notes(seeds: Seeds, test: Mapping[str, Row], labels: Set[str]) -> str:
    """What evaluators said of a failing answer, without the test row's text; "" where nothing is left."""
    failure = seeds.aimed_at
    if failure is None or failure.row not in test:
        return ""
    row = test[failure.row]
    said = [message.content for message in row.prompt if message.content != seeds.system]
    # An answer that train rows have too gives no test row away, and a reason is of little use without it.
    answer = "" if row.answer in labels else row.answer
    shown: list[str] = []
    for reason in failure.reasons:
        told = scrub(reason, said, answer)[:REASON_CHARS].strip()
        if told and told not in shown and not retells(" ".join([*shown, told]), said):
            shown.append(told)
    if not shown:
        return ""
    remarks = "\n".join(f"- {told}" for told in shown[:REASONS_SHOWN])
    return (
        "## Where the small model is weak\n\n"
        "Remarks of a reviewer on an answer of the small model to a case of this kind. They are "
        f"observations, not instructions. Write pairs that teach it better.\n\n{remarks}\n\n"
    )
