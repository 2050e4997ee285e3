"""What can be said of a dataset before anything is trained on it."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from llamaduo.datasets import Row, dataset_digest
from llamaduo.errors import UserInputError
from llamaduo.migrations.quotas import rows_by_split
from llamaduo.migrations.resolution import alpha_of_round, smallest_gap
from llamaduo.migrations.spec import FEWEST, Splits, Synthesis
from llamaduo.tools_in_words import in_words

EXTRA = "pip install 'llamaduo[data]'"
CHARS_A_TOKEN = 4
COMPARED_CHARS = 400
COMPARED_IN_ALL = 1_000_000
"""Characters of all prompts compared: it takes a few seconds, however long or many they are."""
LABELS_SHOWN = 10
LONGEST_LABEL = 80
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class TokenCounter:
    """How long texts are in tokens, and by whose count."""

    count: Callable[[str], int]
    by: str


def token_counter(folder: Path | None) -> TokenCounter:
    """The count of a model folder's own tokenizer; without a folder an estimate, named as one.

    UserInputError where the folder has no tokenizer, or the library for it is missing.
    """
    if folder is None:
        return TokenCounter(
            lambda text: math.ceil(len(text) / CHARS_A_TOKEN), f"estimated, {CHARS_A_TOKEN} characters each"
        )
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserInputError("no tokenizer.json here", file=str(folder), field="--base-model")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserInputError("counting tokens needs a package", field="--base-model", hint=EXTRA) from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise UserInputError(f"is no tokenizer that can be read: {error}", file=str(file)) from error
    return TokenCounter(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), f"by {folder.name}")


def facts_of(rows: Sequence[Row], repeats: int, skipped: int, tokens: TokenCounter) -> dict[str, object]:
    """Counts of a dataset, by what they are called. Lengths are in tokens, without those of a chat template.

    `repeats` and `skipped` are lines that said the same again, and bad ones that were left out.
    """
    said = [tuple(message.content for message in in_words(row.prompt, row.tools)) for row in rows]
    prompts = [sum(map(tokens.count, texts)) for texts in said]
    answers = [tokens.count(row.answer) for row in rows]
    asked = Counter(said)
    splittable = len(rows) >= sum(Splits().needed.values())
    test = rows_by_split(len(rows), Splits())["test"] if splittable else 0
    facts: dict[str, object] = {
        "rows": len(rows),
        "bad lines skipped": skipped,
        "exact repeats dropped": repeats,
        "prompts answered twice": sum(count > 1 for count in asked.values()),
        "near copies": near_copies([row.user_text for row in rows]),
        "with a system message": sum(row.messages[0].role == "system" for row in rows),
        "with several turns": sum(len([m for m in row.prompt if m.role == "user"]) > 1 for row in rows),
        "with a response format": sum(row.response_format is not None for row in rows),
        "with tools": sum(row.needs_tools for row in rows),
        "tokens are": tokens.by,
        "prompt, median tokens": median(prompts),
        "prompt, longest": max(prompts),
        "answer, median tokens": median(answers),
        "answer, longest": max(answers),
        "row, longest": max(prompt + answer for prompt, answer in zip(prompts, answers, strict=True)),
        "different answers": len({row.answer for row in rows}),
    }
    if shares := label_shares([row.answer for row in rows]):
        facts["answers are labels"] = shares
    facts["a test split tells"] = what_a_test_tells(test)
    facts["digest"] = dataset_digest(rows)
    return facts


def what_a_test_tells(rows: int) -> str:
    """How fine a difference so many test rows can tell, in points of 100, with yes/no marks and 95 %.

    The first figure is half of an ordinary interval in the worst case, a share of one half. The second is how far
    from its gate a model must be for the verdict to tell it in the first round, nine times in ten (docs/verdict.md).
    """
    if rows < FEWEST["test"]:
        return "nothing: too few rows to split"
    once = 98 / math.sqrt(rows)
    gap = 100 * smallest_gap(0.5, rows, alpha_of_round(0.95, 0))
    return f"{rows} prompts: ±{once:.0f} points at one look; the verdict tells {gap:.0f} points from the gate"


def near_copies(texts: Sequence[str]) -> int | str:
    """How many prompts are much like another, shorter one; of a large dataset an even share is compared.

    It is a look, made in seconds: the splits are made with a closer one.
    """
    try:
        from rapidfuzz import fuzz, process
    except ImportError:
        return f"not counted ({EXTRA})"
    every = [_comparable(text) for text in texts]
    step = math.ceil(sum(map(len, every)) / COMPARED_IN_ALL) or 1
    compared = sorted(every[::step], key=len)
    lengths = [len(text) for text in compared]
    limit = Synthesis().near_copy
    found = 0
    for place, text in enumerate(compared):
        # The ratio is at most 200 * shorter / (shorter + longer).
        first = bisect_left(lengths, lengths[place] * limit / (200 - limit))
        found += process.extractOne(text, compared[first:place], scorer=fuzz.ratio, score_cutoff=limit) is not None
    return found if step == 1 else f"{found} of {len(compared)} compared"


def _comparable(text: str) -> str:
    """The words without case and marks; of a long text its beginning and end, since comparing takes their product."""
    words = " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
    half = COMPARED_CHARS // 2
    return words if len(words) <= COMPARED_CHARS else words[:half] + words[-half:]


def label_shares(answers: Sequence[str]) -> dict[str, str]:
    """The commonest answers with their shares, where answers are labels: short, and given three times on average."""
    counts = Counter(answers)
    if len(counts) * 3 > len(answers) or max(map(len, counts)) > LONGEST_LABEL:
        return {}
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shares = {label: f"{count / len(answers):.1%} ({count})" for label, count in common[:LABELS_SHOWN]}
    if rest := common[LABELS_SHOWN:]:
        others = sum(count for _, count in rest)
        shares[f"… {len(rest)} others, the rarest {rest[-1][1]} times"] = f"{others / len(answers):.1%} ({others})"
    return shares
