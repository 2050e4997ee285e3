"""Answers that are JSON: compared as values, and told about without a value of theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_MOST_NAMES = 8
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,60}")


def differences(expected: Any, given: Any, path: str) -> list[tuple[str, str]]:
    """(path, kind) of each place where two JSON values differ; the path is empty where it must not be told.

    1 equals 1.0, and true is no number.
    """
    if isinstance(expected, dict) and isinstance(given, dict):
        found = [
            difference
            for key in expected
            for difference in (
                differences(expected[key], given[key], below(path, key))
                if key in given
                else [(below(path, key), "missing")]
            )
        ]
        return found + [("", "unasked") for key in given if key not in expected]
    if isinstance(expected, list) and isinstance(given, list) and len(expected) == len(given):
        return [
            difference
            for one, other in zip(expected, given, strict=True)
            for difference in differences(one, other, f"{path}[]")
        ]
    same = isinstance(expected, bool) == isinstance(given, bool) and expected == given
    return [] if same else [(path, "differs")]


def below(path: str, key: str) -> str:
    """The dotted path of a field; a key that is no plain name may be data and is not told."""
    if not _PLAIN_NAME.fullmatch(key):
        return path or "a field"
    return f"{path}.{key}" if path else key


def listed(names: Sequence[str]) -> str:
    """The first few different names, and how many more there are."""
    different = list(dict.fromkeys(name for name in names if name))
    more = f" and {len(different) - _MOST_NAMES} more" if len(different) > _MOST_NAMES else ""
    return f"{', '.join(different[:_MOST_NAMES])}{more}"
