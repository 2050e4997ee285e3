"""What must not be kept of a conversation is replaced before it is written anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["email", "phone", "card"]


@dataclass(frozen=True)
class Rule:
    """What matches `pattern` becomes `[NAME]`, where `fits` agrees."""

    name: str
    pattern: re.Pattern[str]
    fits: Callable[[str], bool] = lambda _: True


def _is_phone(text: str) -> bool:
    """Enough digits, and written as numbers to call are: no date, no bare number of an order."""
    digits = sum(character.isdigit() for character in text)
    groups = re.findall(r"\d+", text)
    called = text.startswith(("+", "0", "(")) or len(groups) >= 3
    date = re.match(r"\d{4}([-./])\d{1,2}\1\d{1,2}\b|\d{1,2}([-./])\d{1,2}\2\d{4}\b", text)
    return 8 <= digits <= 15 and called and date is None


def _is_card(text: str) -> bool:
    """13 to 19 digits whose check digit holds (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [digit if at % 2 == 0 else sum(divmod(2 * digit, 10)) for at, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0


# The looks to the left keep each from being tried anew within a long run of the same characters.
BUILT_IN: dict[Kind, Rule] = {
    "email": Rule("EMAIL", re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")),
    "card": Rule("CARD", re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?!\d)"), _is_card),
    "phone": Rule("PHONE", re.compile(r"(?<![\w+(./-])(?:\+|\(\+?)?\d[\d ()./-]{6,22}\d(?!\w)"), _is_phone),
}


def rules(kinds: Sequence[Kind], own: Mapping[str, str]) -> list[Rule]:
    """A team's own patterns first, then the built-in ones, cards before phones. re.error for a bad pattern."""
    mine = [Rule(name.upper(), re.compile(pattern)) for name, pattern in own.items()]
    return mine + [rule for kind, rule in BUILT_IN.items() if kind in kinds]


def redacted_text(text: str, by: Sequence[Rule]) -> str:
    """The text with `[NAME]` for all that a rule matches."""
    for rule in by:
        text = rule.pattern.sub(
            lambda match, rule=rule: f"[{rule.name}]" if rule.fits(match[0]) else match[0],  # type: ignore[misc]
            text,
        )
    return text


def redacted(value: Any, by: Sequence[Rule]) -> Any:
    """The same JSON value with every text in it redacted; keys stay as they are."""
    if isinstance(value, str):
        return redacted_text(value, by)
    if isinstance(value, list):
        return [redacted(item, by) for item in value]
    if isinstance(value, dict):
        return {key: redacted(item, by) for key, item in value.items()}
    return value
