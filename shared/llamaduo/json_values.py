"""A text read strictly as one JSON value."""

from __future__ import annotations

import json
from typing import Any, Final

from llamaduo.nesting import is_deeper

MISSING: Final = object()
"""What a text that is no JSON value is read as: null is a value."""

MOST_LEVELS = 200


def json_value(text: str) -> Any:
    """The one JSON value a text is, or `MISSING`.

    Repeated keys, NaN, infinity and what is nested more than MOST_LEVELS deep are not JSON here.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(items)) != len(items):
            raise ValueError("a key is repeated")
        return dict(items)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError):
        return MISSING
    return MISSING if is_deeper(value, MOST_LEVELS) else value
