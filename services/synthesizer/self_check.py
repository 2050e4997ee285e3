"""The teacher looks at its own pairs again, apart from having written them, and says which to drop.

One call for the pairs of a call that passed the filters. What it does not judge, and what it cannot be asked about
because the call fails, is kept: the check is there to drop what is wrong, not to make good pairs scarce.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from string import Template

from llamaduo.datasets import Message
from llamaduo.identity import seed_of
from services.synthesizer.asking import Pair, PairCheck, PairChecks, TeacherPrompt
from services.synthesizer.prompting import asked_part, example_lines, task_part
from services.synthesizer.seeding import Seeds

NAME = "self_check"
ROLE = (
    "You check training data from which a small language model learns one task. "
    "You answer with the JSON asked for and nothing else."
)


def check_prompt(
    *, migration: str, round_number: int, call: int, task: str, seeds: Seeds, pairs: Sequence[Pair]
) -> TeacherPrompt:
    """The prompt that has the pairs of one call checked: a pure function of its arguments."""
    numbered = [
        json.dumps({"number": number, "prompt": pair.prompt, "answer": pair.answer}, ensure_ascii=False)
        for number, pair in enumerate(pairs, start=1)
    ]
    text = _template().substitute(
        task=task_part(task),
        system=asked_part(seeds),
        examples=example_lines([*seeds.rows, *seeds.contrasts]),
        pairs="\n".join(numbered),
    )
    return TeacherPrompt(
        job=f"self-check/{round_number}/{call}",
        messages=[Message(role="system", content=ROLE), Message(role="user", content=text)],
        seed=seed_of("self-check", migration, round_number, call),
        output=PairChecks,
    )


def kept_by(pairs: Sequence[Pair], checks: Sequence[PairCheck]) -> list[Pair]:
    """The pairs without those that a check says to drop; the first check of a number counts."""
    verdicts: dict[int, bool] = {}
    for check in checks:
        verdicts.setdefault(check.number, check.keep)
    return [pair for number, pair in enumerate(pairs, start=1) if verdicts.get(number, True)]


@lru_cache(maxsize=1)
def _template() -> Template:
    folder = resources.files("services.synthesizer") / "prompts"
    return Template((folder / "self_check.md").read_text(encoding="utf-8"))
