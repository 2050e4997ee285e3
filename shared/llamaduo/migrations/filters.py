"""What the names mean under which generated rows are counted as dropped (`dataset.ready`, `removed`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FILTERS: Final[Mapping[str, str]] = {
    "malformed": "empty, far too long, or not in the form of the team's own answers",
    "invalid_call": "calls a tool that is not offered, or with arguments that its schema forbids",
    "near_copy_held": "gives a validation, test or holdout row away",
    "duplicate": "a prompt there is already, but for case and punctuation",
    "near_copy_train": "resembles a row that is trained on",
    "self_check": "the teacher itself called it wrong on a second look",
    "surplus": "more than were wanted",
}
"""Name → what it drops, in the order in which they are applied."""
