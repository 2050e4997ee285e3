"""A service LLM played by recorded rows: it answers synthesis prompts with questions that people wrote.

It reads the same prompt as a real one. For each case that names a label it gives an unused row of that label: of a
few drawn at random the one most like the example of that label, since a model that is shown an example writes
something of its kind. How closely it keeps to examples is set by how many it may choose from.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llamaduo.datasets import Row
from services.synthesizer.asking import Pair, TeacherAnswer, TeacherPrompt

CHOICES = 8
_CASE = re.compile(r"^\d+\. answer with `([^`]+)`", re.MULTILINE)
_CONTRASTS = "Easily mistaken"
_WORD = re.compile(r"\w+")


class RecordedTeacher:
    """Gives each row of `pool` once. Equal pools, seeds and prompts give equal answers."""

    def __init__(self, pool: Iterable[Row], seed: int, choices: int = CHOICES) -> None:
        self._chance = random.Random(seed)
        self._choices = choices
        self._unused: dict[str, list[Row]] = {}
        for row in pool:
            self._unused.setdefault(row.answer, []).append(row)
        self._likeness = Likeness([row.user_text for rows in self._unused.values() for row in rows])
        self.calls = 0

    async def ask(self, prompts: list[TeacherPrompt]) -> list[TeacherAnswer]:
        """See `services.synthesizer.asking.Teacher`."""
        self.calls += len(prompts)
        return [TeacherAnswer(pairs=self._pairs(prompt.messages[-1].content)) for prompt in prompts]

    def _pairs(self, prompt: str) -> list[Pair]:
        shown = examples(prompt)
        told: Counter[str] = Counter()
        pairs = []
        for label in _CASE.findall(prompt):
            alike = shown.get(label, [])
            row = self.row_like(label, alike[told[label] % len(alike)] if alike else None)
            told[label] += 1
            if row is not None:
                pairs.append(Pair(prompt=row.user_text, answer=row.answer))
        return pairs

    def row_like(self, label: str, example: str | None) -> Row | None:
        """An unused row of `label`, like `example` where there is one; None where none is left."""
        left = self._unused.get(label, [])
        if not left:
            return None
        drawn = self._chance.sample(range(len(left)), min(self._choices if example else 1, len(left)))
        best = (
            max(drawn, key=lambda place: self._likeness.of(left[place].user_text, example)) if example else drawn[0]
        )
        return left.pop(best)


def examples(prompt: str) -> dict[str, list[str]]:
    """Questions of the examples in a synthesis prompt, by their label."""
    found: dict[str, list[str]] = {}
    for line in prompt.split(_CONTRASTS, maxsplit=1)[0].splitlines():
        if line.startswith('{"prompt"'):
            record = json.loads(line)
            found.setdefault(record["answer"], []).append(record["prompt"])
    return found


class Likeness:
    """Cosine of two texts' words, rare ones counting more (TF-IDF)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._seen = Counter(word for text in texts for word in set(_words(text)))
        self._texts = len(texts)
        self._vectors: dict[str, dict[str, float]] = {}

    def of(self, left: str, right: str) -> float:
        """0 (nothing in common) to 1 (the same words equally often)."""
        one, two = self._vector(left), self._vector(right)
        return sum(weight * two.get(word, 0.0) for word, weight in one.items())

    def _vector(self, text: str) -> dict[str, float]:
        if text not in self._vectors:
            counts = Counter(_words(text))
            raw = {word: n * math.log((1 + self._texts) / (1 + self._seen[word])) for word, n in counts.items()}
            length = math.sqrt(sum(value * value for value in raw.values())) or 1.0
            self._vectors[text] = {word: value / length for word, value in raw.items()}
        return self._vectors[text]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
