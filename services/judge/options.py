"""What a spec may set for an evaluator under `options`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from llamaduo.errors import PermanentError
from services.judge.each_answer import Options


def check_options(evaluator: str, options: Options, known: Sequence[str]) -> None:
    """PermanentError naming the first option that this evaluator does not have."""
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
            raise PermanentError(f"evaluator {evaluator} has no option {name!r}: {hint}")


def text_option(evaluator: str, options: Options, name: str) -> str | None:
    """The text that an option holds, None where it is not set. PermanentError where it is no text."""
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise PermanentError(f"evaluator {evaluator}: option {name!r} is a text")
    return value
