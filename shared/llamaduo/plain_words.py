"""What an error of pydantic means, in words for the person who wrote the value: one table for all people write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_WHOLE = "must be a whole number, not {found}"
_NUMBER = "must be a number, not {found}"
_MAPPING = "must be a mapping of keys, not {found}"
_WORDS: dict[str, str] = {
    "extra_forbidden": "unknown key",
    "missing": "this key is missing",
    "string_type": "must be text, not {found}",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": "must be true or false, not {found}",
    "bool_parsing": "must be true or false, not {found}",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "list_type": "must be a list, not {found}",
    "greater_than": "must be above {gt}, not {found}",
    "greater_than_equal": "must be at least {ge}, not {found}",
    "less_than": "must be below {lt}, not {found}",
    "less_than_equal": "must be at most {le}, not {found}",
    "finite_number": "must be a finite number, not {found}",
    "literal_error": "must be {expected}, not {found}",
    "string_pattern_mismatch": "{found} has not the form that is wanted here",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must name at least {min_length}",
    "recursion_loop": "holds itself",
}
_LONGEST = 40


def in_words(error: ErrorDetails, patterns: Mapping[str, str] | None = None) -> str:
    """The error in plain words; `patterns` has words of their own for values that must match a pattern."""
    context: dict[str, Any] = dict(error.get("ctx") or {})
    if error["type"] == "string_pattern_mismatch" and (own := (patterns or {}).get(context.get("pattern", ""))):
        return own.format(found=shown(error["input"]))
    words = _WORDS.get(error["type"])
    if words is None:
        return error["msg"].removeprefix("Value error, ")
    if error["input"] is None and "{found}" in words:
        return "has no value"
    # Numbers as people write them: 1, not 1.0.
    limits = {name: f"{value:.12g}" if isinstance(value, float) else value for name, value in context.items()}
    return words.format(**{**limits, "found": shown(error["input"])})


def shown(value: Any) -> str:
    """A value in a message: never long, and never the inside of a list or mapping."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (yes, on and true are one value in YAML)" if value else "false (no, off)"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
