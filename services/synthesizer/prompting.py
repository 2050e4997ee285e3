"""Writes the messages of one synthesis call."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from string import Template

from llamaduo.datasets import Message, Row
from llamaduo.event_parts import FailingRow
from llamaduo.identity import seed_of
from llamaduo.tools_in_words import tool_lines
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


@dataclass(frozen=True)
class Variety:
    """Who may write, how, and how hard it may be: what makes one call's pairs unlike another's."""

    writers: tuple[str, ...]
    shapes: tuple[str, ...]
    difficulties: tuple[str, ...]
    aimed: str

    def drawn(self, chance: random.Random, aimed: bool) -> str:
        """Two writers, a shape and a difficulty, in words."""
        hard = self.aimed if aimed else chance.choice(self.difficulties)
        return "; ".join([*chance.sample(self.writers, 2), chance.choice(self.shapes), hard])


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
    text = _template().substitute(
        task=task_part(task),
        system=asked_part(seeds),
        examples=example_lines(seeds.rows),
        contrasts=_contrasts(seeds),
        cases=_cases(seeds),
        notes=_notes(seeds, test, labels),
        number=pairs,
        variety=variety().drawn(chance, bool(seeds.aimed_at)),
        batch=f"{round_number}-{call}",
    )
    return TeacherPrompt(
        job=f"synthesis/{round_number}/{call}",
        messages=[Message(role="system", content=ROLE), Message(role="user", content=text)],
        seed=seed_of("synthesis", migration, round_number, call),
        output=Pairs,
    )


def _text(name: str) -> str:
    return (resources.files("services.synthesizer") / "prompts" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _template() -> Template:
    return Template(_text("synthesis.md"))


@lru_cache(maxsize=1)
def variety() -> Variety:
    """The table `prompts/variety.toml`."""
    table = tomllib.loads(_text("variety.toml"))
    return Variety(tuple(table["writers"]), tuple(table["shapes"]), tuple(table["difficulties"]), table["aimed"])


def example_lines(rows: Sequence[Row]) -> str:
    """Rows as a teacher is shown them."""
    return "\n".join(json.dumps({"prompt": row.user_text, "answer": row.answer}, ensure_ascii=False) for row in rows)


def _contrasts(seeds: Seeds) -> str:
    if not seeds.contrasts:
        return ""
    return f"Easily mistaken for some of these, but other cases:\n\n{example_lines(seeds.contrasts)}\n\n"


def _cases(seeds: Seeds) -> str:
    """One line for each pair asked for."""
    if not seeds.asks:
        return ""
    lines = []
    for number, ask in enumerate(seeds.asks, start=1):
        label = " ".join(ask.label.split())
        lines.append(f"{number}. answer with `{label}`, {ask.length}" if label else f"{number}. {ask.length}")
    return (
        "One for each of these cases, in this order; kinds and lengths are as common here as in real life:\n\n"
        + "\n".join(lines)
        + "\n\n"
    )


def task_part(task: str) -> str:
    """What the spec says of the task."""
    return task.strip() or NO_TASK


def asked_part(seeds: Seeds) -> str:
    """How the examples ask, beside the question: their system prompt and their tools; "" for none."""
    parts = []
    if seeds.system:
        parts.append(f"Whoever does the task is told this beforehand:\n\n<<<\n{seeds.system}\n>>>\n")
    if seeds.tools:
        offered = "\n".join(tool_lines(seeds.tools))
        parts.append(
            "Whoever does the task may call these tools. An answer that calls one is, or ends in, one line of JSON "
            "as in the examples, with a tool of these and arguments that its `parameters` allow:\n\n"
            f"<<<\n{offered}\n>>>\n"
        )
    return "\n".join(parts)


def _notes(seeds: Seeds, test: Mapping[str, Row], labels: Set[str]) -> str:
    """What evaluators said of failing answers, without the test rows' text; "" where nothing is left."""
    told = [
        reason
        for failure in seeds.aimed_at
        if failure.row in test
        for reason in _reasons(failure, test[failure.row], seeds.system, labels)
    ]
    if not told:
        return ""
    remarks = "\n".join(f"- {reason}" for reason in list(dict.fromkeys(told))[:REASONS_SHOWN])
    return (
        "## Where the small model is weak\n\n"
        "Remarks of a reviewer on answers of the small model to cases of this kind. They are "
        f"observations, not instructions. Write pairs that teach it better.\n\n{remarks}\n\n"
    )


def _reasons(failure: FailingRow, row: Row, system: str, labels: Set[str]) -> list[str]:
    said = [message.content for message in row.prompt if message.content != system]
    # An answer that train rows have too gives no test row away, and a reason is of little use without it.
    answer = "" if row.answer in labels else row.answer
    told: list[str] = []
    for reason in failure.reasons:
        left = scrub(reason, said, answer)[:REASON_CHARS].strip()
        if left and left not in told and not retells(" ".join([*told, left]), said):
            told.append(left)
    return told
